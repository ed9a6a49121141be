# Runs cargo on every build, because only cargo knows what is current, and puts the libraries under their installed names
# into ${CMAKE_CURRENT_BINARY_DIR}/lib. Defines cleave::cleave and cleave::static.
find_program(CLEAVE_CARGO cargo HINTS "$ENV{CARGO_HOME}/bin" "$ENV{HOME}/.cargo/bin")
if(NOT CLEAVE_CARGO)
    message(FATAL_ERROR "cargo is needed (rustc 1.89 or later): run tools/setup.sh, or set CLEAVE_CARGO")
endif()

# Libraries that Rust's standard library needs besides libc, for static linking.
set(CLEAVE_SYSTEM_LIBRARIES gcc_s util rt pthread m dl)

set(cleave_lib_dir "${CMAKE_CURRENT_BINARY_DIR}/lib")
set(cleave_soname "libcleave.so.${PROJECT_VERSION_MAJOR}")
set(cleave_shared "${cleave_lib_dir}/libcleave.so.${PROJECT_VERSION}")
set(cleave_static "${cleave_lib_dir}/libcleave.a")
set(cleave_strip "")
if(CLEAVE_STRIP_DEBUG AND CMAKE_STRIP)
    set(cleave_strip "${CMAKE_STRIP}")
endif()

# Panic messages contain the names of source files; these must not reveal the machine that built them.
set(cleave_cargo_home "$ENV{CARGO_HOME}")
if(NOT cleave_cargo_home)
    set(cleave_cargo_home "$ENV{HOME}/.cargo")
endif()
set(cleave_rustflags "$ENV{RUSTFLAGS} --remap-path-prefix=${cleave_cargo_home}/registry/src=crates")
string(APPEND cleave_rustflags " --remap-path-prefix=${PROJECT_SOURCE_DIR}=cleave")
string(STRIP "${cleave_rustflags}" cleave_rustflags)

add_custom_target(cleave_cargo ALL
    COMMAND "${CMAKE_COMMAND}" -E env "CARGO_TARGET_DIR=${CLEAVE_CARGO_TARGET_DIR}" "RUSTFLAGS=${cleave_rustflags}"
            "${CLEAVE_CARGO}" build --release --locked --lib
    COMMAND "${CMAKE_COMMAND}" "-DFROM=${CLEAVE_CARGO_TARGET_DIR}/release" "-DTO=${cleave_lib_dir}"
            "-DVERSION=${PROJECT_VERSION}" "-DSONAME=${cleave_soname}" "-DSTRIP=${cleave_strip}" "-DOBJCOPY=${CMAKE_OBJCOPY}"
            -P "${PROJECT_SOURCE_DIR}/cmake/stage.cmake"
    BYPRODUCTS "${cleave_shared}" "${cleave_static}"
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
    COMMENT "cargo build --release"
    VERBATIM)

add_library(cleave::cleave SHARED IMPORTED GLOBAL)
set_target_properties(cleave::cleave PROPERTIES
    IMPORTED_LOCATION "${cleave_shared}"
    IMPORTED_SONAME "${cleave_soname}"
    INTERFACE_INCLUDE_DIRECTORIES "${PROJECT_SOURCE_DIR}/include")
add_dependencies(cleave::cleave cleave_cargo)

add_library(cleave::static STATIC IMPORTED GLOBAL)
set_target_properties(cleave::static PROPERTIES
    IMPORTED_LOCATION "${cleave_static}"
    INTERFACE_INCLUDE_DIRECTORIES "${PROJECT_SOURCE_DIR}/include"
    INTERFACE_LINK_LIBRARIES "${CLEAVE_SYSTEM_LIBRARIES}")
add_dependencies(cleave::static cleave_cargo)
