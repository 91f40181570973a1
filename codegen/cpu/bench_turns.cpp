#include "codegen/cpu/bench_turns.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>

#include "support/error.h"

namespace moec {

namespace {

constexpr const char* kVariable = "MOEC_BENCH_TURNS";

// To the one that follows: which row, and whether to run a round. Back: the
// same row and how long it took.
struct Message {
  uint64_t row = 0;
  double seconds = 0;
  uint64_t more = 0;
};

void send(int fd, const Message& m) {
  if (write(fd, &m, sizeof m) != ssize_t(sizeof m))
    throw UserError("the other build of moec ended before the bench did");
}

Message receive(int fd, uint64_t row) {
  Message m;
  if (read(fd, &m, sizeof m) != ssize_t(sizeof m))
    throw UserError("the other build of moec ended before the bench did");
  if (m.row != row)
    throw UserError(
        "the other build of moec times other rows: name one with "
        "--only");
  return m;
}

std::unique_ptr<BenchTurns>& current() {
  static std::unique_ptr<BenchTurns> turns;
  return turns;
}

}  // namespace

BenchTurns::BenchTurns(const std::string& binary,
                       std::vector<std::string> args) {
  std::signal(SIGPIPE, SIG_IGN);
  int there[2], back[2];
  if (pipe2(there, O_CLOEXEC) || pipe2(back, O_CLOEXEC))
    throw UserError("cannot open a pipe to " + binary);
  args.insert(args.begin(), binary);
  std::vector<char*> argv, env;
  for (std::string& a : args) argv.push_back(a.data());
  argv.push_back(nullptr);
  // numbers that survive the start of the child
  constexpr int kFrom = 98, kTo = 99;
  std::string variable = fmt::format("{}={},{}", kVariable, kFrom, kTo);
  for (char** e = environ; *e; ++e) env.push_back(*e);
  env.push_back(variable.data());
  env.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, there[0], kFrom);
  posix_spawn_file_actions_adddup2(&actions, back[1], kTo);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  pid_t child = -1;
  const int error = posix_spawn(&child, binary.c_str(), &actions, nullptr,
                                argv.data(), env.data());
  posix_spawn_file_actions_destroy(&actions);
  close(there[0]), close(back[1]);
  from_ = back[0], to_ = there[1], child_ = child;
  if (error)
    throw UserError("cannot run " + binary + ": is it a build of moec?");
}

BenchTurns::~BenchTurns() {
  close(from_), close(to_);
  if (child_ > 0) waitpid(child_, nullptr, 0);
}

bool BenchTurns::next(const std::string& row, double seconds, bool more) {
  const uint64_t id = std::hash<std::string>{}(row);
  if (!leads_) {
    if (seconds) send(to_, {id, seconds, 0});
    return receive(from_, id).more;
  }
  if (!seconds) {
    ratios_.clear();
    return true;
  }
  send(to_, {id, 0, 1});
  ratios_.push_back(receive(from_, id).seconds / seconds);
  if (!more) send(to_, {id, 0, 0});
  return more;
}

double BenchTurns::speedup() const {
  if (ratios_.empty()) return 0;
  std::vector<double> r = ratios_;
  std::ranges::nth_element(r, r.begin() + r.size() / 2);
  return r[r.size() / 2];
}

BenchTurns* bench_turns() {
  static const bool follows = [] {
    int from = 0, to = 0;
    const char* v = std::getenv(kVariable);
    if (!v || std::sscanf(v, "%d,%d", &from, &to) != 2) return false;
    current() = std::make_unique<BenchTurns>(from, to);
    return true;
  }();
  (void)follows;
  return current().get();
}

void lead_bench_turns(const std::string& binary,
                      std::vector<std::string> args) {
  current() = std::make_unique<BenchTurns>(binary, std::move(args));
}

}  // namespace moec
