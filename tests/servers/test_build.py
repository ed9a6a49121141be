"""Message of a build of the C++ server without its packages."""

import shutil
import subprocess

import pytest
from servers import ROOT


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_the_cpp_server_names_what_it_lacks(tmp_path):
    missing = ["-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_OpenSSL=ON"]
    subprocess.run(["cmake", "-S", ROOT / "examples" / "cpp-server", "-B", tmp_path, *missing], check=True, capture_output=True)
    built = subprocess.run(["cmake", "--build", tmp_path, "--target", "example_cpp_server"], capture_output=True, text=True)
    text = built.stdout + built.stderr
    assert built.returncode != 0
    assert all(word in text for word in ["nlohmann-json3-dev", "libssl-dev", "tools/setup.sh --all"]), text
