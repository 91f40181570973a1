// The public API of moec: define a model in the DSL, compile it, run it.
#pragma once
#include "frontend/nn.h"
#include "frontend/ops.h"
#include "frontend/optim.h"
#include "frontend/parameters.h"
#include "frontend/tensor.h"
#include "frontend/trace.h"
#include "ir/text.h"
#include "models/moe/engine.h"
#include "support/error.h"
