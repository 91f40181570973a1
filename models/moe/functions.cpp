#include "models/moe/functions.h"

#include <algorithm>

#include <fmt/ranges.h>
#include "frontend/optim.h"

#include "support/error.h"

namespace moec::moe {
using namespace dsl;
namespace {

struct Batch {
  Tensor tokens, targets;
};

Tensor token_input(i64 b, i64 t) { return input("tokens", DType::I32, {b, t}); }

Batch batch_input(i64 b, i64 t) {
  Tensor tokens = token_input(b, t);
  return {tokens, input("targets", DType::I32, {b, t})};
}

AdamWOptions adamw_options(const TrainConfig& t) {
  AdamWOptions o;
  o.beta1 = t.beta1;
  o.beta2 = t.beta2;
  o.eps = t.eps;
  o.weight_decay = t.weight_decay;
  o.decay_matrices_only = t.decay == "matrices";
  o.clip = t.clip;
  return o;
}

// Loss with capacity, as training and the functions loss and grad have it.
Losses training_loss(const Transformer& m, const Batch& in,
                     std::vector<Routing>& routings) {
  EncodeOptions o;
  o.capacity = true;
  Features f = m.encode(in.tokens, o);
  routings = f.routings;
  return losses(m, f, in.targets);
}

void add_load(Outputs& out, const std::vector<Routing>& routings) {
  if (routings.empty()) return;
  std::vector<Operand> rows;
  for (auto& r : routings) rows.push_back(reshape(r.load, {1, r.load.dim(0)}));
  out.push_back({"load", rows.size() == 1 ? rows[0].tensor : concat(rows, 0)});
}

void add_losses(Outputs& out, const Losses& l) {
  out.insert(out.end(), {{"loss", l.loss}, {"ce", l.ce}});
  out.insert(out.end(), {{"aux", l.aux}, {"z", l.z}});
}

}  // namespace

std::unique_ptr<Graph> logits_function(const Transformer& m, i64 b, i64 t) {
  return trace("logits", m.parameters(), [&] {
    EncodeOptions o;
    o.capacity = m.config().moe.eval_capacity;
    return Outputs{{"logits", m.decode(m.encode(token_input(b, t), o).x)}};
  });
}

std::unique_ptr<Graph> encode_function(const Transformer& m, i64 b, i64 t) {
  return trace("encode", m.parameters(), [&] {
    EncodeOptions o;
    o.capacity = m.config().moe.eval_capacity;
    return Outputs{{"features", m.encode(token_input(b, t), o).x}};
  });
}

std::unique_ptr<Graph> head_function(const Transformer& m, i64 b, i64 t) {
  return trace("head", m.parameters(), [&] {
    Dims shape{b, t, m.config().model.d_model};
    return Outputs{{"logits", m.decode(input("features", DType::F32, shape))}};
  });
}

std::unique_ptr<Graph> next_token_function(const Transformer& m, i64 b, i64 t) {
  return trace("next_token", m.parameters(), [&] {
    EncodeOptions o;
    o.capacity = m.config().moe.eval_capacity;
    Tensor tokens = token_input(b, t);
    Tensor last = input("last", DType::I32, {b});
    Tensor x = m.encode(tokens, o).x;
    Tensor rows = gather(reshape(x, {b * t, x.dim(2)}), last);
    return Outputs{{"logits", m.decode(rows)}};
  });
}

namespace {

// Caches of all layers as arguments; outputs of the same names update them in
// place.
KvContext cache_inputs(const Transformer& m, i64 b, i64 length) {
  auto& c = m.config().model;
  KvContext kv;
  for (i64 l = 0; l < c.n_layers; ++l) {
    auto add = [&](char kind, i64 width) {
      return input(fmt::format("cache.{}.{}", kind, l), DType::F32,
                   {b, length, c.n_kv_heads, width});
    };
    kv.keys.push_back(add('k', c.d_head));
    kv.values.push_back(add('v', c.d_value));
  }
  return kv;
}

void add_caches(Outputs& out, const KvContext& c) {
  for (size_t l = 0; l < c.keys.size(); ++l) {
    out.push_back({fmt::format("cache.k.{}", l), c.keys[l]});
    out.push_back({fmt::format("cache.v.{}", l), c.values[l]});
  }
}

}  // namespace

std::unique_ptr<Graph> prefill_function(const Transformer& m, i64 b, i64 t,
                                        i64 length) {
  return trace("prefill", m.parameters(), [&] {
    Tensor tokens = token_input(b, t);
    Tensor last = input("last", DType::I32, {b});
    KvContext kv = cache_inputs(m, b, length);
    EncodeOptions o;
    o.cache = &kv;
    Tensor x = m.encode(tokens, o).x;
    Tensor rows = gather(reshape(x, {b * t, x.dim(2)}), last);
    Outputs out{{"logits", m.decode(rows)}};
    add_caches(out, kv);
    return out;
  });
}

std::unique_ptr<Graph> decode_function(const Transformer& m, i64 b,
                                       i64 length) {
  return trace("decode", m.parameters(), [&] {
    Tensor tokens = token_input(b, 1);
    Tensor start = input("start", DType::I32, {b});
    KvContext kv = cache_inputs(m, b, length);
    kv.start = start;
    kv.positions = reshape(start, {b, 1});
    EncodeOptions o;
    o.cache = &kv;
    Tensor x = m.encode(tokens, o).x;
    Outputs out{{"logits", m.decode(reshape(x, {b, x.dim(2)}))}};
    add_caches(out, kv);
    return out;
  });
}

std::unique_ptr<Graph> routes_function(const Transformer& m, i64 b, i64 t) {
  return trace("routes", m.parameters(), [&] {
    std::vector<Operand> layers;
    for (auto& r : m.encode(token_input(b, t)).routings)
      layers.push_back(reshape(r.indices, {1, b * t, r.indices.dim(1)}));
    Tensor all = layers.size() == 1 ? layers[0].tensor : concat(layers, 0);
    return Outputs{{"routes", all}};
  });
}

std::unique_ptr<Graph> loss_function(const Transformer& m, i64 b, i64 t) {
  return trace("loss", m.parameters(), [&] {
    std::vector<Routing> routings;
    Losses l = training_loss(m, batch_input(b, t), routings);
    return Outputs{{"loss", l.loss}, {"ce", l.ce}};
  });
}

std::unique_ptr<Graph> grad_function(const Transformer& m, i64 b, i64 t) {
  return trace("grad", m.parameters(), [&] {
    std::vector<Routing> routings;
    Losses l = training_loss(m, batch_input(b, t), routings);
    auto grads = grad(l.loss, parameter_tensors());
    Outputs out{{"loss", l.loss}, {"ce", l.ce}};
    for (int i = 0; i < m.parameters().size(); ++i)
      out.push_back({"grad." + m.parameters()[i].name, grads[size_t(i)]});
    return out;
  });
}

std::unique_ptr<Graph> eval_function(const Transformer& m, i64 b, i64 t) {
  return trace("eval", m.parameters(), [&] {
    Batch in = batch_input(b, t);
    EncodeOptions o;
    o.capacity = m.config().moe.eval_capacity;
    o.valid = compare(reshape(in.targets, {b * t}), 0.0, "ge");
    Features f = m.encode(in.tokens, o);
    Losses l = losses(m, f, in.targets);
    Outputs out{{"ce", l.ce}, {"aux", l.aux}, {"z", l.z}};
    out.push_back({"count", sum(cast(o.valid, DType::F32))});
    add_load(out, f.routings);
    return out;
  });
}

std::unique_ptr<Graph> train_step_function(const Transformer& m) {
  auto& t = m.config().train;
  return trace("train_step", m.parameters(), [&] {
    Batch in = batch_input(t.batch, t.seq);
    Tensor lr = input("lr", DType::F32, {});
    Tensor step = input("step", DType::F32, {});
    Tensor key = input("key", DType::U32, {2});
    std::vector<Routing> routings;
    Losses l;
    auto [loss, grads] = value_and_grad([&] {
      Training on(key);
      l = training_loss(m, in, routings);
      return l.loss;
    });
    AdamWStep update = adamw(m.parameters(), grads, lr, step, adamw_options(t));
    Outputs out = update.outputs;
    add_losses(out, l);
    out.push_back({"grad_norm", update.grad_norm});
    add_load(out, routings);
    return out;
  });
}

std::unique_ptr<Graph> accumulate_function(const Transformer& m) {
  auto& t = m.config().train;
  return trace("accumulate", m.parameters(), [&] {
    Batch in = batch_input(t.batch, t.seq);
    Tensor key = input("key", DType::U32, {2});
    std::vector<Tensor> sums;
    for (auto& p : m.parameters().all())
      sums.push_back(input("acc." + p.name, DType::F32, p.dims));
    std::vector<Routing> routings;
    Losses l;
    auto [loss, grads] = value_and_grad([&] {
      Training on(key);
      l = training_loss(m, in, routings);
      return l.loss;
    });
    Outputs out;
    for (size_t i = 0; i < sums.size(); ++i)
      out.push_back({"acc." + m.parameters()[int(i)].name, sums[i] + grads[i]});
    add_losses(out, l);
    add_load(out, routings);
    return out;
  });
}

std::unique_ptr<Graph> update_function(const Transformer& m) {
  auto& t = m.config().train;
  return trace("update", m.parameters(), [&] {
    Tensor lr = input("lr", DType::F32, {});
    Tensor step = input("step", DType::F32, {});
    std::vector<Tensor> grads;
    Outputs cleared;
    for (auto& p : m.parameters().all()) {
      Tensor acc = input("acc." + p.name, DType::F32, p.dims);
      grads.push_back(acc * (1.0 / double(t.accumulate)));
      cleared.push_back({"acc." + p.name, acc * 0.0});
    }
    AdamWStep update = adamw(m.parameters(), grads, lr, step, adamw_options(t));
    Outputs out = update.outputs;
    out.insert(out.end(), cleared.begin(), cleared.end());
    out.push_back({"grad_norm", update.grad_norm});
    return out;
  });
}

std::vector<std::string> function_names(const Transformer& m) {
  std::vector<std::string> names = {"train_step", "loss",    "grad",
                                    "logits",     "encode",  "head",
                                    "eval",       "prefill", "decode"};
  if (m.config().train.accumulate > 1) {
    names[0] = "accumulate";
    names.insert(names.begin() + 1, "update");
  }
  return names;
}

std::unique_ptr<Graph> make_function(const Transformer& m,
                                     std::string_view name, i64 b, i64 t) {
  if (name == "logits") return logits_function(m, b, t);
  if (name == "loss") return loss_function(m, b, t);
  if (name == "grad") return grad_function(m, b, t);
  if (name == "encode") return encode_function(m, b, t);
  if (name == "head") return head_function(m, b, t);
  if (name == "prefill") return prefill_function(m, b, t, t);
  if (name == "decode") return decode_function(m, b, t);
  if (name == "eval") return eval_function(m, b, t);
  if (name == "train_step") return train_step_function(m);
  if (name == "accumulate") return accumulate_function(m);
  if (name == "update") return update_function(m);
  usage_error("there is no function {}; this model has {}", name,
              fmt::join(function_names(m), ", "));
}

}  // namespace moec::moe
