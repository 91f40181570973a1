// A page, complete in one file, to browse what every pass made of functions.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "passes/pass_manager.h"

namespace moec {

class HtmlReport {
 public:
  // Runs the pipeline and keeps the graph's text at each pass.
  void add(Graph&, PassContext&, RunOptions = {});
  // The page; `title` says what was dumped.
  std::string page(std::string_view title) const;

 private:
  struct Line {
    std::string text, scope;
    int info = -1;  // index into infos_, or none
  };
  struct Dump {
    int number;
    std::string pass;
    double ms = 0;
    bool changed = true;
    int nodes = 0;
    std::vector<Line> lines;
  };
  struct Function {
    std::string name;
    std::vector<Dump> dumps;
  };
  // What a hover tells of a node.
  struct Info {
    std::string op, source;
    double flops = 0, bytes = 0;
  };
  std::vector<Line> lines_of(const Graph&);

  std::vector<Function> functions_;
  std::vector<Info> infos_;
};

}  // namespace moec
