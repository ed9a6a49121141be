# Installs headers, libraries with their links, CMake package and pkg-config file. No installed file contains the path it was
# built in or installed to.
include(CMakePackageConfigHelpers)

set(cleave_cmake_dir "${CMAKE_INSTALL_LIBDIR}/cmake/cleave")
set(cleave_pc_dir "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

install(FILES "${PROJECT_SOURCE_DIR}/include/cleave/cleave.h" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/cleave")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/bindings/cpp/cleave" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        FILES_MATCHING PATTERN "*.hpp")
install(PROGRAMS "${cleave_shared}" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES "${cleave_lib_dir}/${cleave_soname}" "${cleave_lib_dir}/libcleave.so" "${cleave_static}"
        DESTINATION "${CMAKE_INSTALL_LIBDIR}")

set(cleave_package_dir "${CMAKE_CURRENT_BINARY_DIR}/package")
set(cleave_libdir "${CMAKE_INSTALL_LIBDIR}")
set(cleave_includedir "${CMAKE_INSTALL_INCLUDEDIR}")
configure_package_config_file(cmake/cleaveConfig.cmake.in "${cleave_package_dir}/cleaveConfig.cmake"
    INSTALL_DESTINATION "${cleave_cmake_dir}"
    PATH_VARS cleave_libdir cleave_includedir
    NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file("${cleave_package_dir}/cleaveConfigVersion.cmake"
    VERSION "${PROJECT_VERSION}" COMPATIBILITY SameMajorVersion)
configure_file(cmake/cleaveTargets.cmake.in "${cleave_package_dir}/cleaveTargets.cmake" @ONLY)
install(FILES "${cleave_package_dir}/cleaveConfig.cmake" "${cleave_package_dir}/cleaveConfigVersion.cmake"
        "${cleave_package_dir}/cleaveTargets.cmake" DESTINATION "${cleave_cmake_dir}")

# Relative path from the .pc file to the prefix, so that the tree can be moved as a whole.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}" OR IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
    message(FATAL_ERROR "CMAKE_INSTALL_LIBDIR and CMAKE_INSTALL_INCLUDEDIR must be relative to the prefix")
endif()
file(RELATIVE_PATH cleave_pc_up "/${cleave_pc_dir}" "/")
string(REGEX REPLACE "/$" "" cleave_pc_up "${cleave_pc_up}")
string(REPLACE ";" " -l" cleave_pc_libs_private "-l${CLEAVE_SYSTEM_LIBRARIES}")
configure_file(cmake/cleave.pc.in "${cleave_package_dir}/cleave.pc" @ONLY)
install(FILES "${cleave_package_dir}/cleave.pc" DESTINATION "${cleave_pc_dir}")
