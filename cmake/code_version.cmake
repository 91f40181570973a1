# Writes OUT with the hash of all sources under ROOT.
file(GLOB_RECURSE files ${ROOT}/*.cpp ${ROOT}/*.h)
list(SORT files)
set(all "")
foreach(f ${files})
  file(SHA256 ${f} h)
  string(APPEND all ${h})
endforeach()
string(SHA256 version "${all}")
file(WRITE ${OUT}
  "#include \"codegen/cpu/code_version.h\"\n"
  "namespace moec {\n"
  "const char* const kCodeVersion = \"${version}\";\n"
  "}\n")
