#include "models/moe/transformer.h"

#include "support/error.h"

namespace moec::moe {
using namespace dsl;

Norm::Norm(At at, const ModelConfig& m) {
  if (m.norm == "rms")
    norm = RmsNorm(at, m.d_model, m.norm_eps);
  else
    norm = LayerNorm(at, m.d_model, m.norm_eps);
}
Tensor Norm::operator()(Operand x) const {
  return std::visit([&](auto& n) { return n(x); }, norm);
}

Block::Block(At at, const Config& c, i64 l)
    : layer(l),
      is_moe(c.is_moe_layer(l)),
      residual_ffn(c.model.residual_ffn),
      norm1(at / "norm1", c.model),
      attn(at / "attn", c),
      dropout{c.model.dropout} {
  norm2 = Norm(at / "norm2", c.model);
  if (is_moe)
    moe = Moe(at / "moe", c);
  else
    ffn = DenseFfn(at / "ffn", c.model, c.model.dense_ffn, c.model.d_ff_dense);
}

Tensor Block::operator()(Tensor x, const RouteContext& context,
                         std::vector<Routing>& routings,
                         KvContext* cache) const {
  Scope scope("layer" + std::to_string(layer));
  x = (x + dropout(attn(norm1(x), cache, layer))).named("x");
  Tensor n = norm2(x), y;
  if (is_moe) {
    i64 d = x.dim(2);
    Tensor flat = reshape(n, {x.dim(0) * x.dim(1), d});
    y = reshape(moe(flat, context, routings.emplace_back()), x.type().dims);
  } else {
    Scope inner("ffn");
    y = ffn(n);
  }
  y = dropout(y);
  return residual_ffn ? (x + y).named("x") : y.named("x");
}

Transformer::Transformer(const Config& config) : config_(config) {
  auto& m = config_.model;
  MOEC_CHECK(m.vocab > 0, "the vocabulary is not known yet");
  At at(params_);
  Inits init(m);
  embed_ = Embedding(at / "embed", m.vocab, m.d_model, init.embedding());
  if (m.pos == "learned")
    positions_ = (at / "pos_embed")
                     .parameter("weight", {config_.train.seq, m.d_model},
                                init.embedding());
  for (i64 l = 0; l < m.n_layers; ++l)
    blocks_.emplace_back(at / "layers" / int(l), config_, l);
  norm_ = Norm(at / "norm", m);
  if (!m.tied)
    head_ =
        Linear(at / "head", m.d_model, m.vocab, m.bias.head, init.embedding());
  dropout_ = {m.dropout};
}

void Transformer::store_weights(DType dtype) {
  for (int i = 0; i < params_.size(); ++i) {
    auto& p = params_[i];
    if (p.dims.size() >= 2 && p.name.ends_with(".weight") &&
        p.name.find(".router.") == std::string::npos)
      params_.set_stored(i, dtype);
  }
}

// Only the lookup of the padding token has no gradient; a tied head has one.
Tensor Transformer::embed(Tensor tokens) const {
  i64 pad = config_.model.pad;
  if (pad < 0) return embed_(tokens);
  Tensor padding = compare(tokens, double(pad), "eq");
  Tensor others = select(padding, -1.0, tokens);
  Tensor fixed = select(padding, tokens, -1.0);
  // Rows of negative ids are zeros.
  return embed_(others) + stop_gradient(embed_(fixed));
}

Features Transformer::encode(Tensor tokens, const EncodeOptions& o) const {
  i64 t = tokens.dim(1);
  Tensor x;
  {
    Scope scope("embed");
    // Nothing is trained through a cache.
    x = o.cache ? embed_(tokens) : embed(tokens);
    if (positions_) {
      if (o.cache && o.cache->start)
        x = x + embedding(positions_, o.cache->positions);
      else if (t > config_.train.seq)
        user_error(
            "{} positions, but the model has learned positions for {} "
            "(train.seq)",
            t, config_.train.seq);
      else
        x = x + slice(positions_, 0, 0, t);
    }
    x = dropout_(x).named("x");
  }
  RouteContext context;
  context.rows = tokens.dim(0);
  context.capacity = o.capacity && config_.moe.capacity > 0;
  context.valid = o.valid;
  Features f;
  for (auto& block : blocks_) x = block(x, context, f.routings, o.cache);
  f.x = norm_(x).named("features");
  return f;
}

Tensor Transformer::decode(Tensor features) const {
  Scope scope("head");
  if (!config_.model.tied) return head_(features);
  return matmul(features, embed_.weight, {.transpose_b = true});
}

Losses losses(const Transformer& model, const Features& f, Tensor targets) {
  i64 n = f.x.dim(0) * f.x.dim(1);
  Tensor logits = model.decode(reshape(f.x, {n, f.x.dim(2)})).named("logits");
  Scope scope("loss");
  Tensor flat = reshape(targets, {n});
  Tensor per_token = cross_entropy(logits, flat);
  Tensor counted = cast(compare(flat, 0.0, "ge"), DType::F32);
  Losses l;
  l.ce = sum(per_token) / maximum(sum(counted), 1.0);
  l.loss = l.ce;
  auto& moe = model.config().moe;
  for (auto& r : f.routings) {
    l.aux = l.aux ? l.aux + r.aux : r.aux;
    l.z = l.z ? l.z + r.z : r.z;
  }
  if (f.routings.empty()) {
    l.aux = Tensor(record(Op::Constant, {}, {{"value", 0.0}})->result());
    l.z = l.aux;
  }
  if (moe.aux_coef != 0) l.loss = l.loss + l.aux * moe.aux_coef;
  if (moe.z_coef != 0) l.loss = l.loss + l.z * moe.z_coef;
  l.ce.named("ce"), l.aux.named("aux"), l.z.named("z"), l.loss.named("loss");
  return l;
}

}  // namespace moec::moe
