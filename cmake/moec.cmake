# moec_library(NAME FILES... DEPS targets...): one static library per folder,
# with the source root as its include path. Installed, a header stands at
# <moec/FOLDER/NAME.h>.
function(moec_library name)
  cmake_parse_arguments(A "" "" "FILES;DEPS" ${ARGN})
  add_library(moec_${name} STATIC ${A_FILES})
  add_library(moec::${name} ALIAS moec_${name})
  set_target_properties(moec_${name} PROPERTIES EXPORT_NAME ${name}
                        POSITION_INDEPENDENT_CODE ON)
  target_include_directories(moec_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
    $<INSTALL_INTERFACE:include>
    $<INSTALL_INTERFACE:include/moec>)
  target_compile_features(moec_${name} PUBLIC cxx_std_20)
  target_link_libraries(moec_${name} PUBLIC ${A_DEPS})
  install(TARGETS moec_${name} EXPORT moecTargets)
  cmake_path(RELATIVE_PATH CMAKE_CURRENT_SOURCE_DIR
             BASE_DIRECTORY ${PROJECT_SOURCE_DIR} OUTPUT_VARIABLE folder)
  install(DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/
          DESTINATION include/moec/${folder}
          FILES_MATCHING PATTERN *.h PATTERN *.def)
endfunction()

# moec_test(NAME FILES... DEPS targets...): a doctest program test_NAME, run by
# ctest in the source root. Tests include "tests/test.h", which has doctest.
function(moec_test name)
  cmake_parse_arguments(A "" "" "FILES;DEPS" ${ARGN})
  add_executable(test_${name} ${A_FILES})
  target_link_libraries(test_${name} PRIVATE moec_test_main ${A_DEPS})
  add_test(NAME ${name} COMMAND test_${name}
           WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
endfunction()
