// Runs the moec binary.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace moec {

struct Outcome {
  int code = -1;  // exit code; 128 + signal
  std::string out, err;
};

// `kill_after` >= 0: SIGKILL after so many seconds if it still runs.
Outcome run_moec(const std::vector<std::string>& args, double kill_after = -1);

}  // namespace moec
