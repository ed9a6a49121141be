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


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_the_cpp_server_without_grpc(tmp_path):
    """It is built, and CMake says what --grpc lacks."""
    (tmp_path / "CMakeLists.txt").write_text(f"""
        cmake_minimum_required(VERSION 3.16)
        project(without_grpc CXX)
        add_library(cleave::cpp INTERFACE IMPORTED GLOBAL)
        add_subdirectory("{ROOT / 'examples' / 'cpp-server'}" server)
        """)
    build = tmp_path / "build"
    configured = subprocess.run(["cmake", "-S", tmp_path, "-B", build, "-DCMAKE_DISABLE_FIND_PACKAGE_Protobuf=ON"], check=True, capture_output=True, text=True)
    [line] = [line for line in configured.stdout.splitlines() if "left out: --grpc of examples/cpp-server" in line]
    assert all(word in line for word in ["libprotobuf-dev, protobuf-compiler", "tools/setup.sh --all"]), line
    targets = subprocess.run(["cmake", "--build", build, "--target", "help"], check=True, capture_output=True, text=True).stdout
    assert "example_cpp_server" in targets and "example_cpp_protocols" not in targets


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_the_cpp_server_without_zeromq(tmp_path):
    """It is built, and CMake says what --kv-events lacks."""
    missing = ["-DCPPZMQ_INCLUDE_DIR=OFF"]
    configured = subprocess.run(["cmake", "-S", ROOT, "-B", tmp_path, "-DCLEAVE_BUILD_TESTS=OFF", *missing], check=True, capture_output=True, text=True)
    [line] = [line for line in configured.stdout.splitlines() if "left out: --kv-events of examples/cpp-server" in line]
    assert all(word in line for word in ["cppzmq-dev", "tools/setup.sh --all"]), line
    planned = subprocess.run(["cmake", "--build", tmp_path, "--target", "help"], check=True, capture_output=True, text=True).stdout
    assert "example_cpp_server" in planned
