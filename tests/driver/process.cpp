#include "tests/driver/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "support/error.h"
#include "support/file.h"
#include "tests/test.h"

namespace moec {

Outcome run_moec(const std::vector<std::string>& args, double kill_after) {
  TempDir dir;
  auto out = dir / "out", err = dir / "err";
  std::vector<const char*> argv = {MOEC_BINARY};
  for (auto& a : args) argv.push_back(a.c_str());
  argv.push_back(nullptr);
  pid_t child = fork();
  MOEC_CHECK(child >= 0);
  if (child == 0) {
    int flags = O_WRONLY | O_CREAT | O_TRUNC;
    dup2(open(out.c_str(), flags, 0600), 1);
    dup2(open(err.c_str(), flags, 0600), 2);
    execv(argv[0], const_cast<char**>(argv.data()));
    _exit(127);
  }
  int status = 0;
  if (kill_after >= 0) {
    using Clock = std::chrono::steady_clock;
    auto end = Clock::now() + std::chrono::duration<double>(kill_after);
    while (waitpid(child, &status, WNOHANG) == 0) {
      if (Clock::now() > end) {
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  } else {
    waitpid(child, &status, 0);
  }
  int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  auto text = [](auto& p) {
    return std::filesystem::exists(p) ? read_file(p) : "";
  };
  return {code, text(out), text(err)};
}

}  // namespace moec
