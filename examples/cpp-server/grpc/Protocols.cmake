# The library example_cpp_protocols: the code of the gRPC protocols, which exists only if its packages do.
#
# The code is generated when the server is built, unlike that of the Go server: generated C++ compiles only against the
# version of Protobuf that its protoc belongs to, and distributions have different ones.
find_package(Protobuf 3.12 QUIET MODULE)
find_program(grpc_cpp_plugin grpc_cpp_plugin)
set(grpc "")
find_package(gRPC 1.30 QUIET CONFIG)
if(gRPC_FOUND)
    set(grpc gRPC::grpc++)
elseif(PkgConfig_FOUND) # only then, because CMake takes half a minute to ask pkg-config for gRPC's many parts
    pkg_check_modules(grpcpp QUIET IMPORTED_TARGET grpc++>=1.30)
    if(grpcpp_FOUND)
        set(grpc PkgConfig::grpcpp)
    endif()
endif()
set(missing "")
if(NOT grpc)
    list(APPEND missing "gRPC for C++ (Debian: libgrpc++-dev)")
endif()
if(NOT Protobuf_FOUND)
    list(APPEND missing "Protobuf with protoc (Debian: libprotobuf-dev, protobuf-compiler)")
endif()
if(NOT grpc_cpp_plugin)
    list(APPEND missing "grpc_cpp_plugin (Debian: protobuf-compiler-grpc)")
endif()
if(missing)
    list(JOIN missing ", " missing)
    message(STATUS "left out: --grpc of examples/cpp-server, which needs ${missing}. "
        "On Debian and Ubuntu, tools/setup.sh --all installs what is missing.")
    return()
endif()

set(protos "${CMAKE_CURRENT_LIST_DIR}/../../proto")
set(generated "${CMAKE_CURRENT_BINARY_DIR}/protocols")
file(MAKE_DIRECTORY "${generated}")
set(sources "")
# Files below vllm are named without that prefix, as in vLLM's own crate.
foreach(file vllm:control.proto vllm:inference.proto .:cleave/v1/worker.proto)
    string(REPLACE ":" ";" parts "${file}")
    list(GET parts 0 root)
    list(GET parts 1 name)
    string(REGEX REPLACE "\\.proto$" "" stem "${name}")
    set(outputs "")
    foreach(suffix .pb .grpc.pb)
        list(APPEND outputs "${generated}/${stem}${suffix}.cc" "${generated}/${stem}${suffix}.h")
    endforeach()
    add_custom_command(OUTPUT ${outputs}
        COMMAND protobuf::protoc "-I${protos}/${root}" "--cpp_out=${generated}" "--grpc_out=${generated}"
            "--plugin=protoc-gen-grpc=${grpc_cpp_plugin}" "${name}"
        DEPENDS "${protos}/${root}/${name}" VERBATIM)
    list(APPEND sources ${outputs})
endforeach()
add_library(example_cpp_protocols STATIC EXCLUDE_FROM_ALL ${sources})
set_target_properties(example_cpp_protocols PROPERTIES CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON)
# Warnings in generated code are nobody's.
target_compile_options(example_cpp_protocols PRIVATE -w)
target_include_directories(example_cpp_protocols SYSTEM PUBLIC "${generated}")
target_link_libraries(example_cpp_protocols PUBLIC protobuf::libprotobuf ${grpc})
