"""The fuzzers, for a short while; `make fuzz` runs them for long."""

import fuzz_flags
import fuzz_readers
import pytest

INPUTS = {"images": 40, "image_folders": 15, "tfds_records": 30}


@pytest.mark.parametrize("reader", fuzz_readers.READERS)
def test_readers(reader, new_flags):
    ends = list(fuzz_readers.run(reader, INPUTS.get(reader, 300), seed=1))
    assert not [end for end in ends if end not in ("sound", "told")]
    assert "told" in ends


def test_flags(new_flags):
    counts = fuzz_flags.run(num_sets=150, num_steps=0, seed=1)
    assert set(counts) == {"sound", "told"}
