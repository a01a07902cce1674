"""The pulse of a worker: which of its activities is reported, and how far it is."""

from contextlib import ExitStack

from pisco_index.pipeline.planning.plan import Shard
from pisco_index.pipeline.steps import Steps


def test_a_pulse_tells_how_far_the_first_of_several_shards_is():
    first, second = (Shard(number, (), 10, 100) for number in (1, 2))
    steps = Steps()
    assert steps.pulse().doing == "waiting"
    with ExitStack() as computing, steps.doing("compressing", second):
        with steps.doing("compressing", first), steps.doing("reading", first):
            steps.computed(second, 3.0, 300, 0.25)
            steps.computed(first, 5.0, 500, 0.5)
            pulse = steps.pulse()
            assert (pulse.doing, pulse.shard, pulse.part, pulse.documents, pulse.tokens) == (
                "compressing",
                2,
                0.25,
                8,
                800,
            )
        computing.enter_context(steps.doing("writing", first))
        assert steps.pulse().doing == "compressing"
    assert steps.pulse().doing == "waiting"
    # A shard that was given up meanwhile does not come back.
    steps.computed(first, 1.0, 100, 1.0)
    assert steps.pulse().doing == "waiting"
