import pytest

import plaudit_ppo


def test_every_public_name_exists():
    for name in plaudit_ppo.__all__:
        assert getattr(plaudit_ppo, name)


def test_another_name_does_not():
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = plaudit_ppo.Trainer
