import subprocess
import sys

import plaudit_client


def test_the_import_pulls_in_no_heavy_package():
    code = (
        "import sys, plaudit_client\n"
        "heavy = {'torch', 'numpy', 'fastapi', 'pydantic', 'transformers', 'tqdm'} & sys.modules.keys()\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_published_name_exists():
    assert len(set(plaudit_client.__all__)) == len(plaudit_client.__all__)
    for name in plaudit_client.__all__:
        assert getattr(plaudit_client, name) is not None


def test_every_error_is_published():
    from plaudit_client import errors

    kinds = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert kinds <= set(plaudit_client.__all__)
