"""Several processes share an address: signals reach all of them, and those that die are started again."""

import os
import signal
import socket
import threading
import time
from functools import partial

import pytest

from pisco_index.errors import ConfigError, InputError
from pisco_index.serving import workers


def echo(folder, listening, started):
    """Write the number of each SIGHUP to a file of this process, until SIGTERM."""
    mine = folder / str(os.getpid())
    count = 0
    assert listening.getsockname()[1] > 0
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM})
    started()
    mine.write_text("0")
    while signal.sigwait({signal.SIGHUP, signal.SIGTERM}) == signal.SIGHUP:
        count += 1
        mine.write_text(str(count))
    mine.write_text("ended")


def failing(_listening, _started):
    raise ConfigError("there is no store")


def failing_later(file, _listening, started):
    """Listen once, and die; fail from then on."""
    if file.exists():
        raise ConfigError("there is no store any more")
    file.touch()
    started()
    os._exit(9)


def dying(_listening, _started):
    os._exit(9)


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as bound:
        yield bound


def wait_for(check):
    while not check():
        time.sleep(0.01)


def test_signals_reach_all_and_the_dead_are_replaced(listening, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_PAUSE", 0)

    def contents():
        return [path.read_text() for path in tmp_path.iterdir()]

    def play():
        wait_for(lambda: contents() == ["0", "0"])
        os.kill(os.getpid(), signal.SIGHUP)
        wait_for(lambda: contents() == ["1", "1"])
        victim = next(tmp_path.iterdir())
        os.kill(int(victim.name), signal.SIGKILL)
        wait_for(lambda: len(contents()) == 3)
        wait_for(lambda: "0" in contents())
        victim.unlink()
        os.kill(os.getpid(), signal.SIGTERM)

    begun = []
    player = threading.Thread(target=play)
    player.start()
    workers.run_workers(partial(echo, tmp_path), listening, 2, lambda: begun.append(True))
    player.join()
    assert begun == [True]
    assert contents() == ["ended", "ended"]


def test_a_worker_that_cannot_begin_again_says_why(listening, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(workers, "_PAUSE", 0)

    def play():
        wait_for(lambda: "any more" in caplog.text)
        os.kill(os.getpid(), signal.SIGTERM)

    player = threading.Thread(target=play)
    player.start()
    workers.run_workers(partial(failing_later, tmp_path / "begun"), listening, 1, bool)
    player.join()
    assert "died with exit code 9\n" in caplog.text
    assert "died with exit code 1: there is no store any more" in caplog.text


@pytest.mark.parametrize(("work", "message"), [(failing, "there is no store"), (dying, "died with exit code 9")])
def test_a_worker_that_cannot_begin_ends_the_server(listening, work, message):
    with pytest.raises(InputError, match=message):
        workers.run_workers(work, listening, 2, lambda: pytest.fail("nothing began"))
