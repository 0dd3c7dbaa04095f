import logging
import warnings

import pytest
import transformers

from plaudit_export.quiet import quiet


def test_noise_is_silenced_inside_and_back_afterwards():
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with quiet():
        warnings.warn("noise", UserWarning, stacklevel=1)
        assert logger.level == logging.ERROR
        assert not transformers.utils.logging.is_progress_bar_enabled()
    assert logger.level == before
    assert transformers.utils.logging.is_progress_bar_enabled()
    with pytest.raises(UserWarning, match="loud"):
        warnings.warn("loud", UserWarning, stacklevel=1)
