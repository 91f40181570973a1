// moec config: the resolved config.
#include <CLI/CLI.hpp>

#include "driver/commands.h"
#include "driver/common.h"
#include "models/moe/model_io.h"
#include "models/moe/trainer.h"

namespace moec {
namespace {

struct Options : ConfigFlags {
  std::string config;
};

void run(const Options& o) {
  if (o.config.empty()) {
    auto c = moe::parse_config(moe::default_config(), "default", o.set);
    fmt::print("{}", moe::to_toml(c));
    return;
  }
  std::filesystem::path path = o.config;
  auto config = path.extension() == ".toml"
                    ? moe::load_config(path, o.set)
                    : moe::open_model(path, o.set).config;
  // Data is opened for a vocabulary only, and only if there is some.
  if (config.model.vocab == 0 && !config.data.path.empty())
    config = moe::open_model(path, o.set).config;
  fmt::print("{}", moe::to_toml(config));
}

}  // namespace

void add_config_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("config", "Print the resolved config");
  c->add_option("config", o->config,
                "Config (TOML) or checkpoint; without one, the default");
  add_config_flags(*c, *o);
  c->callback([o] { run(*o); });
}

}  // namespace moec
