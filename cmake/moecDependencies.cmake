# What moec links with; read by its own build and by find_package(moec).
find_package(fmt REQUIRED)
find_package(absl REQUIRED)
find_package(LLVM 19.1 REQUIRED CONFIG)
find_package(Threads REQUIRED)
find_package(CLI11 REQUIRED)
find_package(tomlplusplus REQUIRED)
find_package(nlohmann_json REQUIRED)

# Debian ships these two without a CMake config.
foreach(pair "pcre2;pcre2.h;pcre2-8" "utf8proc;utf8proc.h;utf8proc")
  list(GET pair 0 name)
  list(GET pair 1 header)
  list(GET pair 2 library)
  if(NOT TARGET moec::${name})
    find_path(MOEC_${name}_INCLUDE ${header} REQUIRED)
    find_library(MOEC_${name}_LIBRARY ${library} REQUIRED)
    add_library(moec::${name} INTERFACE IMPORTED)
    set_target_properties(moec::${name} PROPERTIES
      INTERFACE_INCLUDE_DIRECTORIES "${MOEC_${name}_INCLUDE}"
      INTERFACE_LINK_LIBRARIES "${MOEC_${name}_LIBRARY}")
  endif()
endforeach()
