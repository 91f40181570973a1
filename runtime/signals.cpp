#include "runtime/signals.h"

#include <atomic>
#include <csignal>

#include "support/error.h"

namespace moec {
namespace {

std::atomic<bool> stop{false};
static_assert(std::atomic<bool>::is_always_lock_free);
bool active = false;

void on_signal(int) { stop.store(true); }

void install(int signal) {
  struct sigaction a = {};
  a.sa_handler = on_signal;
  // Once: the next one has its usual effect. Reads and writes go on.
  a.sa_flags = SA_RESETHAND | SA_RESTART;
  sigaction(signal, &a, nullptr);
}

}  // namespace

StopSignals::StopSignals() {
  MOEC_CHECK(!active, "nested StopSignals");
  active = true;
  stop = false;
  install(SIGINT);
  install(SIGTERM);
}

StopSignals::~StopSignals() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
  active = false;
}

bool StopSignals::requested() const { return stop.load(); }

}  // namespace moec
