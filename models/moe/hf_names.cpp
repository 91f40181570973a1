#include "models/moe/hf_names.h"

#include "support/error.h"

namespace moec::moe {
namespace {

struct Named {
  const HfName* rule = nullptr;
  std::string pattern;  // the name, '*' still in it
};

Named find_name(const HfFamily& family, bool stacked, std::string_view name) {
  constexpr std::string_view kLayers = "layers.";
  std::string prefix;
  auto rest = name;
  if (name.starts_with(kLayers)) {
    auto dot = name.find('.', kLayers.size());
    prefix = "model." + std::string(name.substr(0, dot + 1));
    rest = name.substr(dot + 1);
  }
  for (auto& rule : stacked ? family.stacked : family.separate) {
    bool whole = rule.theirs.starts_with("model.") ||
                 rule.theirs.starts_with("lm_head.");
    if (whole == prefix.empty() && rest.starts_with(rule.ours))
      return {&rule, prefix + std::string(rule.theirs) +
                         std::string(rest.substr(rule.ours.size()))};
  }
  return {};
}

}  // namespace

std::string hf_name(const HfFamily& family, bool stacked,
                    std::string_view parameter) {
  return find_name(family, stacked, parameter).pattern;
}

std::vector<HfTensor> hf_tensors(const HfFamily& family, bool stacked,
                                 const dsl::Parameters& params) {
  std::vector<HfTensor> out;
  for (int i = 0; i < params.size(); ++i) {
    auto& p = params[i];
    auto [rule, pattern] = find_name(family, stacked, p.name);
    if (!rule)
      user_error("parameter {}: {} has no tensor for it", p.name,
                 family.model_type);
    std::vector<int64_t> dims(p.dims.begin(), p.dims.end());
    i64 all = Type{DType::F32, p.dims}.numel();
    auto star = pattern.find('*');
    if (star == pattern.npos && rule->parts == 1) {
      out.push_back({pattern, dims, {{i, 0, all}}});
      continue;
    }
    i64 experts = dims[0], each = all / experts;
    if (star != pattern.npos) {
      dims.erase(dims.begin());
      for (i64 e = 0; e < experts; ++e)
        out.push_back({pattern.substr(0, star) + std::to_string(e) +
                           pattern.substr(star + 1),
                       dims,
                       {{i, e * each, each}}});
      continue;
    }
    // The parts of a tensor are parameters one after another.
    if (rule->part == 0) {
      dims[1] *= rule->parts;
      out.push_back({pattern, dims, {}});
      out.back().pieces.resize(size_t(experts * rule->parts));
    }
    auto& t = out.back();
    MOEC_CHECK(t.name == pattern, "{}", p.name);
    for (i64 e = 0; e < experts; ++e)
      t.pieces[size_t(e * rule->parts + rule->part)] = {i, e * each, each};
  }
  return out;
}

}  // namespace moec::moe
