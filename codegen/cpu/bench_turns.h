// Two builds of moec that time the same rows in turn, round by round: load,
// clock and temperature then differ by no more than between two rounds.
#pragma once
#include <string>
#include <vector>

namespace moec {

// This process's end of the pipes between the two.
class BenchTurns {
 public:
  // Starts `binary` with `args` as the one that follows; its output is dropped.
  // Throws UserError if it can't be started.
  BenchTurns(const std::string& binary, std::vector<std::string> args);
  // The one that follows, on descriptors from its environment.
  BenchTurns(int from, int to) : from_(from), to_(to), leads_(false) {}
  BenchTurns(const BenchTurns&) = delete;
  ~BenchTurns();

  // Called before each round of a row, with the seconds of the one before (0
  // before the first): waits for this process's turn and says whether there is
  // another, as the leading side wants `more`. Throws UserError if the other
  // side is gone or at another row.
  bool next(const std::string& row, double seconds, bool more);
  // The leading side, once a row is over: the median over its rounds of the
  // other's time by ours.
  double speedup() const;

 private:
  int from_, to_, child_ = -1;
  bool leads_ = true;
  std::vector<double> ratios_;
};

// Null if this process takes no turns.
BenchTurns* bench_turns();
void lead_bench_turns(const std::string& binary, std::vector<std::string> args);

}  // namespace moec
