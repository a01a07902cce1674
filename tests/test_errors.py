"""Errors: what they keep when they are pickled, and that no error contains credentials."""

import pickle
from pathlib import Path

import pytest

from pisco_index import build, export, new_tiny_checkpoint, open_checkpoint, recode
from pisco_index.configs import CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.errors import (
    BuildIncompleteError,
    CheckpointError,
    ConfigError,
    CorpusError,
    InputError,
    MissingDocumentsError,
    StoreError,
)
from pisco_index.redaction import without_credentials
from pisco_index.store.table.failures import lance_errors

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAFROMTHEENVIRONMENT",
    "AWS_SECRET_ACCESS_KEY": "a+secret/with=signs",
    "AWS_SESSION_TOKEN": "a-token-of-a-session",
    "AZURE_STORAGE_ACCOUNT_KEY": "azure-account-key==",
    "AZURE_STORAGE_SAS_KEY": "sv=2026&sig=azure-sas",
    "GOOGLE_SERVICE_ACCOUNT_KEY": '{"private_key": "google"}',
    "HF_TOKEN": "hf_token_of_mine",
    "HUGGING_FACE_HUB_TOKEN": "hf_an_older_token",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "said",
    [
        "cannot read s3://AKIAKEY:topsecret@bucket/index: no",
        "cannot read 's3://AKIAKEY:top/secret+topsecret@bucket/index'",
        "https://topsecret@host/x",
        "https:/user:topsecret@host/x",
        "redis://:topsecret@host:6379",
        "error sending request for url (https://a.blob.core.windows.net/c/x?sv=2026&sig=topsecret&comp=list)",
        "https://b.s3.amazonaws.com/x?X-Amz-Credential=topsecret&X-Amz-Signature=topsecret",
        "s3://bucket/x?access_key=topsecret&secret_key=topsecret",
        "s3://bucket/x?region=here&AWS_SECRET_ACCESS_KEY=topsecret",
        "<Error><AWSAccessKeyId>topsecret</AWSAccessKeyId><StringToSign>AWS4\ntopsecret\n</StringToSign></Error>",
    ],
)
def test_credentials_are_removed_from_errors(said):
    for error in (StoreError, ConfigError, CorpusError, CheckpointError, BuildIncompleteError):
        assert "topsecret" not in str(error(said))
        assert "…" in str(error(said))
        assert "topsecret" not in repr(pickle.loads(pickle.dumps(error(said))))


def test_credentials_of_the_environment_are_removed_from_the_messages_of_libraries():
    for value in ENVIRONMENT.values():
        with pytest.raises(StoreError) as raised, lance_errors("cannot open"):
            raise OSError(f"Generic S3 error: {value}, {value}")
        assert str(raised.value).count("…") >= 2
        assert value not in str(raised.value)


@pytest.mark.parametrize(
    "said",
    [
        "http://127.0.0.1:8080/a@b is not there",
        "the store does not hold 'https://medium.com/@user/story'",
        "abfss://container@account.dfs.core.windows.net/index",
        "https://a.org/wiki/User:Bob@home?page=2&key_stage=3",
        "/home/a@b/x: no such file",
        "C://x y@z",
        "the region is us-east-1",
    ],
)
def test_text_without_credentials_is_unchanged(said, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/home/a@b/x")
    monkeypatch.setenv("HF_TOKEN", "x")
    assert without_credentials(said) == said


def test_ids_of_missing_documents_are_kept_as_they_are():
    error = pickle.loads(pickle.dumps(MissingDocumentsError("s3://a:topsecret@b", ["s3://a:b@c"])))
    assert error.doc_ids == ("s3://a:b@c",)
    assert "topsecret" not in str(error)


@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_no_folder_to_write_to(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (new_tiny_checkpoint, lambda out: export(tmp_path / "none", out)):
        with pytest.raises(InputError, match="local or mounted paths") as refused:
            write(kind("s3://AKIAKEY:topsecret@bucket/x"))
        assert "topsecret" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(
    "An address holds credentials.",
    "It is refused, and the credentials appear in no message.",
)
@pytest.mark.parametrize("address", ["s3://AKIAKEY:topsecret@bucket/x", "https://user:topsecret@host/x?sig=topsecret"])
@pytest.mark.parametrize(
    "use",
    [
        lambda address: open_corpus([address], CorpusConfig()),
        open_checkpoint,
        lambda address: build([address], address, address),
        lambda address: export(address, address),
        lambda address: recode(address, "int8", address),
    ],
    ids=["corpus", "checkpoint", "build", "export", "recode"],
)
def test_addresses_with_credentials_are_not_repeated(use, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        use(address)
    assert "topsecret" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
