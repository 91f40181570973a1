#include "models/moe/trainer.h"

namespace moec::moe {

std::string_view default_config() {
  return R"(# What `moec train` without a config trains.
[model]
d_model = 128
n_layers = 3
n_heads = 4
n_kv_heads = 2
d_ff = 256
norm = "rms"
pos = "rope"
ffn = "swiglu"
tied = true

[moe]
experts = 8
top_k = 2
gate = "softmax_topk_renorm"
aux_coef = 0.01
z_coef = 0.001

[data]
path = "builtin:chronicle"
tokenizer = "char"
val_fraction = 0.1

[train]
batch = 16
seq = 128
steps = 400
lr = 2e-3
min_lr = 1e-4
warmup = 30
schedule = "cosine"
beta2 = 0.99
weight_decay = 0.1
decay = "matrices"
clip = 1.0
eval_every = 200
eval_batches = 25
save_every = 200
keep = 2
)";
}

}  // namespace moec::moe
