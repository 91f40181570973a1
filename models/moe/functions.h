// The functions of a model as graphs. Arguments are the parameters under
// their names, then what each comment lists; tokens and targets are i32[B,T].
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "models/moe/transformer.h"

namespace moec::moe {

// tokens -> logits f32[B,T,vocab]
std::unique_ptr<Graph> logits_function(const Transformer&, i64 batch, i64 seq);
// The two halves of logits: tokens -> features f32[B,T,d], and features ->
// logits. (The references call the second decode; here that name is taken.)
std::unique_ptr<Graph> encode_function(const Transformer&, i64 batch, i64 seq);
std::unique_ptr<Graph> head_function(const Transformer&, i64 batch, i64 seq);
// tokens, last i32[B] (positions in the flat B*T) -> logits f32[B,vocab] there
std::unique_ptr<Graph> next_token_function(const Transformer&, i64 batch,
                                           i64 seq);
// tokens from index 0 of each row's text, last i32[B] (as above), caches
// "cache.k.N", "cache.v.N" [B,length,Hkv,width] of layer N, length >= T ->
// logits f32[B,vocab] there, and in place the caches with these tokens.
std::unique_ptr<Graph> prefill_function(const Transformer&, i64 batch, i64 seq,
                                        i64 length);
// tokens i32[B,1], start i32[B] (their indices), caches -> logits
// f32[B,vocab], the caches with these tokens, in place.
std::unique_ptr<Graph> decode_function(const Transformer&, i64 batch,
                                       i64 length);
// tokens -> routes i32[MoE layers, B*T, top_k]: the chosen experts
std::unique_ptr<Graph> routes_function(const Transformer&, i64 batch, i64 seq);
// tokens, targets -> loss, ce
std::unique_ptr<Graph> loss_function(const Transformer&, i64 batch, i64 seq);
// tokens, targets -> loss, ce, grad.<parameter>...
std::unique_ptr<Graph> grad_function(const Transformer&, i64 batch, i64 seq);
// tokens, targets -> ce, aux, z (over targets >= 0), count f32[] of those
// targets, load i32[MoE layers, experts] (only with MoE layers): dropless
// unless moe.eval_capacity.
std::unique_ptr<Graph> eval_function(const Transformer&, i64 batch, i64 seq);
// tokens, targets, lr f32[], step f32[] (1 for the first), key u32[2], moments
// -> the new parameters and moments in place of the old, loss, ce, aux, z,
// grad_norm f32[], load as above.
std::unique_ptr<Graph> train_step_function(const Transformer&);
// One of train.accumulate parts of a step: tokens, targets, key, sums
// "acc.<parameter>" -> the sums with this part's gradient added, loss, ce,
// aux, z, load.
std::unique_ptr<Graph> accumulate_function(const Transformer&);
// lr, step, sums, moments -> parameters and moments, sums set to zero,
// grad_norm.
std::unique_ptr<Graph> update_function(const Transformer&);

// The functions that `dump` and `run` know, at the config's batch and seq.
std::vector<std::string> function_names(const Transformer&);
// A UsageError for a name that is not among them.
std::unique_ptr<Graph> make_function(const Transformer&, std::string_view name,
                                     i64 batch, i64 seq);

}  // namespace moec::moe
