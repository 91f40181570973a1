# What find_package(moec) needs beside the libraries, which moec_library()
# installs one by one.
include(CMakePackageConfigHelpers)
if(TARGET moec)
  install(TARGETS moec)
endif()
set(package_dir lib/cmake/moec)
install(EXPORT moecTargets NAMESPACE moec:: DESTINATION ${package_dir})
configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/moecConfig.cmake.in
  ${PROJECT_BINARY_DIR}/moecConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/moecConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/moecConfig.cmake
              ${PROJECT_BINARY_DIR}/moecConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/cmake/moecDependencies.cmake
        DESTINATION ${package_dir})
