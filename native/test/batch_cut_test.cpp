// How a batch is cut for a decode layer on a GPU: whatever its size, all of it, in order, in few enough parts.
#include "cuda/batch_cut.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "check.h"

namespace {

using skv::cuda::BatchCut;
using skv::cuda::BatchParts;
using skv::cuda::cut_batch;
using skv::cuda::kMostBatchParts;

std::vector<int> ends_of(const BatchParts& parts) {
  std::vector<int> ends;
  for (int i = 0; i < parts.count; ++i) {
    ends.push_back(parts.end(i));
  }
  return ends;
}

bool covers(const BatchParts& parts, int pairs) {
  int at = 0;
  for (int i = 0; i < parts.count; ++i) {
    if (parts.first(i) != at || parts.end(i) <= at) {
      return false;
    }
    at = parts.end(i);
  }
  return at == pairs && parts.count <= kMostBatchParts;
}

// Each selection ends where a fetch does.
bool nested(const BatchCut& cut) {
  const std::vector<int> fetched = ends_of(cut.fetched);
  for (const int end : ends_of(cut.selected)) {
    if (std::find(fetched.begin(), fetched.end(), end) == fetched.end()) {
      return false;
    }
  }
  return true;
}

void check_all_sizes() {
  for (int pairs = 0; pairs < 6000; pairs += pairs < 900 ? 1 : 37) {
    for (const bool reranks : {false, true}) {
      const BatchCut cut = cut_batch(pairs, 0, reranks);
      if (!CHECK(covers(cut.fetched, pairs) && covers(cut.selected, pairs) && nested(cut))) {
        std::fprintf(stderr, "  %d pairs, rerank %d\n", pairs, reranks);
      }
    }
  }
}

void check_wanted() {
  for (const int wanted : {1, 2, 3, 8, 31, 32, 33, 1000}) {
    for (const int pairs : {1, 2, 7, 64, 65, 224, 2000}) {
      const BatchCut cut = cut_batch(pairs, wanted, false);
      CHECK_EQUAL(cut.fetched.count, std::min({wanted, pairs, kMostBatchParts}));
      CHECK(covers(cut.fetched, pairs) && covers(cut.selected, pairs) && nested(cut));
    }
  }
}

void check_examples() {
  CHECK(ends_of(cut_batch(8, 0, false).fetched) == std::vector<int>({8}));
  CHECK(ends_of(cut_batch(64, 0, false).fetched) == std::vector<int>({8, 16, 24, 36, 48, 64}));
  CHECK(ends_of(cut_batch(64, 0, false).selected) == std::vector<int>({8, 24, 48, 64}));
  CHECK(ends_of(cut_batch(64, 0, true).fetched) == std::vector<int>({12, 24, 44, 64}));
  CHECK(ends_of(cut_batch(64, 8, false).selected) == std::vector<int>({8, 24, 56, 64}));
}

}  // namespace

int main() {
  check_all_sizes();
  check_wanted();
  check_examples();
  return check::verdict();
}
