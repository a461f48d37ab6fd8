from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cellwright import engines
from cellwright.errors import UsageError
from cellwright.train.settings import NONFINITE, POOLINGS, PRECISIONS, Settings

shares = st.floats(0, 1, exclude_max=True)
anything = st.builds(
    Settings,
    cell=st.sampled_from(["lstm", "./a b:c/my.py:cell"]),
    hidden_size=st.integers(1, 9999),
    num_layers=st.integers(1, 9),
    bidirectional=st.booleans(),
    sizes=st.dictionaries(st.sampled_from(["projection", "no"]), st.integers(1, 99)),
    pooling=st.sampled_from(POOLINGS),
    dropout=shares,
    noise=st.floats(0, 1e300),
    offset=st.floats(0, 9),
    crop=shares,
    epochs=st.integers(1, 999),
    batch_size=st.integers(1, 999),
    learning_rate=st.floats(0, 9, exclude_min=True),
    weight_decay=st.floats(0, 9),
    gradient_clip=st.floats(0, 9, exclude_min=True),
    validation=shares,
    seed=st.integers(0, 2**32 - 1),
    threads=st.integers(1, 99),
    engine=st.sampled_from([None, *engines.names()]),
    decay=st.floats(0, 1, exclude_min=True, exclude_max=True),
    decay_epochs=st.integers(1, 99),
    gradient_clip_value=st.none() | st.floats(0, 9, exclude_min=True),
    nonfinite=st.sampled_from(NONFINITE),
    accumulate=st.integers(1, 9),
    average=st.none() | shares,
    patience=st.none() | st.integers(1, 9),
    precision=st.sampled_from(PRECISIONS),
    layer=st.just({"gradient": "truncated"}),
)


@given(anything)
def test_settings_go_to_yaml_and_back(settings):
    assert Settings.from_dict(yaml.safe_load(yaml.safe_dump(settings.as_dict()))) == settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "--hidden-size: expected a whole number, 1 or more, got 0"),
        ({"epochs": 1.5}, "--epochs: expected a whole number, 1 or more, got 1.5"),
        ({"batch_size": True}, "--batch-size: expected a whole number"),
        ({"seed": -1}, "--seed: expected a whole number, 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "--seed: expected a whole number, 0 to 4294967295"),
        ({"dropout": 1.0}, "--dropout: expected a number 0 or more and below 1, got 1.0"),
        ({"noise": float("nan")}, "--noise: expected a number 0 or more, got nan"),
        ({"noise": "much"}, "--noise: expected a number 0 or more, got 'much'"),
        ({"learning_rate": 0}, "--learning-rate: expected a number above 0, got 0"),
        ({"learning_rate": float("inf")}, "--learning-rate: expected a number above 0, got inf"),
        ({"pooling": "sum"}, "--pooling: expected one of last, mean, max, mean-max, got 'sum'"),
        ({"cell": ""}, "--cell: expected a name or path.py:cell, got ''"),
        ({"bidirectional": 1}, "--bidirectional: expected true or false, got 1"),
        ({"sizes": {"projection": 0}}, "size projection: expected a whole number, 1 or more"),
        ({"engine": "warp"}, "--engine: expected one of cpu, gpu, reference, got 'warp'"),
        ({"sizes": 3}, "--size: expected names with numbers, got 3"),
        ({"nonfinite": "pray"}, "--nonfinite: expected one of error, skip, got 'pray'"),
        ({"precision": "16"}, "--precision: expected one of 32-true, bf16-mixed, got '16'"),
        ({"schedule": "up"}, "--schedule: expected one of cosine, constant, step, plateau"),
        ({"average": 1.0}, "--average: expected a number 0 or more and below 1, got 1.0"),
        ({"decay": 0}, "--decay: expected a number above 0 and below 1, got 0"),
        ({"gradient_clip_value": 0}, "--gradient-clip-value: expected a number above 0, got 0"),
        ({"patience": 0}, "--patience: expected a whole number, 1 or more, got 0"),
        ({"accumulate": 0}, "--accumulate: expected a whole number, 1 or more, got 0"),
        ({"devices": 17}, "--devices: 17 processes cannot share batches of 16"),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(UsageError) as caught:
        Settings(**changes)
    assert message in str(caught.value)


def test_records_that_are_not_settings():
    with pytest.raises(UsageError, match="unknown setting 'depth'"):
        Settings.from_dict({**Settings().as_dict(), "depth": 3})
    values = Settings().as_dict()
    del values["seed"]
    with pytest.raises(UsageError, match="the setting 'seed' is missing"):
        Settings.from_dict(values)
