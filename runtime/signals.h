// SIGINT and SIGTERM as a flag, so that a run can save and exit.
#pragma once

namespace moec {

// Catches both signals for its scope; one at a time in a process. A second
// signal of the same kind ends the process as usual.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  bool requested() const;
};

}  // namespace moec
