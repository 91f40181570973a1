#include "models/moe/attention.h"

#include <cmath>

namespace moec::moe {
using namespace dsl;

Attention::Attention(At at, const Config& c)
    : heads(c.model.n_heads),
      kv_heads(c.model.n_kv_heads),
      d_head(c.model.d_head),
      d_value(c.model.d_value),
      window(c.model.window),
      rope_theta(c.model.pos == "rope" ? c.model.rope_theta : 0),
      qk_norm(c.model.qk_norm),
      dropout{c.model.dropout} {
  auto& m = c.model;
  Inits init(m);
  i64 nq = heads * d_head, nk = kv_heads * d_head, nv = kv_heads * d_value;
  Init in = init.attention(m.d_model, nq + nk + nv);
  q = Linear(at / "q_proj", m.d_model, nq, m.bias.qkv, in);
  k = Linear(at / "k_proj", m.d_model, nk, m.bias.qkv, in);
  v = Linear(at / "v_proj", m.d_model, nv, m.bias.qkv, in);
  i64 no = heads * d_value;
  out = Linear(at / "o_proj", no, m.d_model, m.bias.attn_out,
               init.residual(init.attention(no, m.d_model)));
  if (qk_norm == "none") return;
  bool full = qk_norm == "full";
  q_norm = RmsNorm(at / "q_norm", full ? nq : d_head, m.norm_eps);
  k_norm = RmsNorm(at / "k_norm", full ? nk : d_head, m.norm_eps);
}

Tensor Attention::split(Tensor x, i64 n, i64 width) const {
  return reshape(x, {x.dim(0), x.dim(1), n, width});
}

// Norm per head and rotary positions of queries or keys [B,T,n,d_head].
Tensor Attention::positioned(Tensor x, const RmsNorm& norm,
                             const KvContext* cache) const {
  if (qk_norm == "head") x = norm(x);
  if (rope_theta == 0) return x;
  constexpr i64 kPositions = 1;
  return cache && cache->start
             ? rope(x, cache->positions, rope_theta, kPositions)
             : rope(x, rope_theta, kPositions);
}

namespace {

// Puts keys or values [B,T,n,w] in the cache. Returns those of all indices
// that the tokens may see.
Tensor with_cache(Tensor now, const KvContext& cache, Tensor& all) {
  Tensor at = cache.start;
  if (!at)
    at =
        Tensor(record(Op::Constant, {}, {{"dtype", DType::I32}, {"value", 0.0}})
                   ->result());
  all = dynamic_update_slice(all, now, at, 1);
  return cache.start ? all : now;
}

}  // namespace

Tensor Attention::operator()(Tensor x, KvContext* cache, i64 layer) const {
  Scope scope("attn");
  i64 b = x.dim(0), t = x.dim(1), groups = heads / kv_heads;
  Tensor q0 = q(x), k0 = k(x), v0 = v(x);
  if (qk_norm == "full") {
    q0 = q_norm(q0);
    k0 = k_norm(k0);
  }
  Tensor qs = positioned(split(q0, heads, d_head), q_norm, cache);
  Tensor ks = positioned(split(k0, kv_heads, d_head), k_norm, cache);
  Tensor vs = split(v0, kv_heads, d_value);
  if (cache) {
    ks = with_cache(ks, *cache, cache->keys[size_t(layer)]);
    vs = with_cache(vs, *cache, cache->values[size_t(layer)]);
  }
  auto heads_first = [](Tensor y) { return transpose(y, {0, 2, 1, 3}); };
  qs = heads_first(qs), ks = heads_first(ks), vs = heads_first(vs);
  // Query head h belongs to key and value head h / groups.
  if (groups > 1) {
    i64 n = ks.dim(2);
    qs = reshape(qs, {b, kv_heads, groups, t, d_head});
    ks = reshape(ks, {b, kv_heads, 1, n, d_head});
    vs = reshape(vs, {b, kv_heads, 1, n, d_value});
  }
  qs.named("q"), ks.named("k"), vs.named("v");
  double scale = 1 / std::sqrt(double(d_head));
  Tensor s = matmul(qs, ks, {.transpose_b = true, .scale = scale}).named("s");
  s = cache && cache->start ? causal_mask(s, cache->start, window)
                            : causal_mask(s, window);
  Tensor p = softmax(s).named("p");
  Tensor o = matmul(dropout(p), vs).named("o");
  o = reshape(o, {b, heads, t, d_value});
  o = reshape(heads_first(o), {b, t, heads * d_value});
  return out(o);
}

}  // namespace moec::moe
