// How a decode layer cuts its batch, so that values of some sessions travel while others are selected and attended.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace skv::cuda {

constexpr int kMostBatchParts = 32;

// Parts of a batch: part i is the pairs of session and key/value head from bound[i] to bound[i + 1].
struct BatchParts {
  int count = 0;
  std::array<int, kMostBatchParts + 1> bound = {};
  int first(int i) const { return bound[static_cast<std::size_t>(i)]; }
  int end(int i) const { return bound[static_cast<std::size_t>(i) + 1]; }
  void add(int end) { bound[static_cast<std::size_t>(++count)] = end; }
};

// What is fetched, and attended, at a time, and what is selected at a time: each selection ends where a fetch does.
struct BatchCut {
  BatchParts fetched, selected;
};

// A selection and the fetches that it feeds.
struct BatchStage {
  int fetches, pairs;  // pairs of each fetch
};

// The stages one after the other, the last again and again. A small selection first, so that the link begins early;
// then larger ones, which keep ahead of it, cost less a pair and leave fewer beginnings of fetches and attentions. A
// rerank takes longer than the link, so that it begins with more. Found by trial of 100 ways to cut 2 to 33 sessions,
// bf16 and fp8 values, 60 and 83 % resident (H200, by graph; in the mean 3 and 7 % less time than fetches of 8 pairs in
// selections of 1, 2, 4 and 6 of them, 33 sessions with fp8 values 6 to 13 and 5 to 14).
constexpr BatchStage kStages[] = {{1, 8}, {2, 8}, {2, 12}, {2, 20}, {2, 24}};
constexpr BatchStage kRerankStages[] = {{2, 12}, {2, 20}, {4, 24}};
// When the caller says how many fetches: all alike.
constexpr BatchStage kEqualStages[] = {{1, 0}, {2, 0}, {4, 0}, {6, 0}};

// pairs >= 0. fetches: how many the caller wants, at most kMostBatchParts; 0: as the stages say.
inline BatchCut cut_batch(int pairs, int fetches, bool reranks) {
  const int wanted = std::clamp(fetches, 0, std::min(pairs, kMostBatchParts));
  std::span<const BatchStage> stages = kStages;
  if (wanted > 0) {
    stages = kEqualStages;
  } else if (reranks) {
    stages = kRerankStages;
  }
  // Of a very large batch more than the stages say, so that there are not too many.
  const int least = (pairs + kMostBatchParts - 2) / (kMostBatchParts - 1);
  BatchCut cut;
  for (int end = 0; end < pairs;) {
    const BatchStage& stage = stages[std::min(static_cast<std::size_t>(cut.selected.count), stages.size() - 1)];
    for (int i = 0; i < stage.fetches && end < pairs; ++i) {
      const int size = std::max(stage.pairs, least);
      if (wanted > 0) {
        end = static_cast<int>(static_cast<std::int64_t>(pairs) * (cut.fetched.count + 1) / wanted);
      } else if (pairs - end < size + size / 2) {
        end = pairs;  // less than half a fetch more is not worth its launches
      } else {
        end += size;
      }
      cut.fetched.add(end);
    }
    cut.selected.add(end);
  }
  return cut;
}

}  // namespace skv::cuda
