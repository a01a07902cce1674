"""The command ``presets``."""


def test_presets_stand_under_the_command_that_takes_them(run):
    shown = run("presets").stdout
    build, pretrain, finetune = (shown.index(f"{name}\n") for name in ("build", "train pretrain", "train finetune"))
    for name in ("beir", "dpr", "msmarco", "wikipedia"):
        assert build < shown.index(f"  {name} ") < pretrain
    assert pretrain < finetune < shown.index("  oscar ")
