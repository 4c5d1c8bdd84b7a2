// One layer of an 8B Llama (32/8 heads, D 128, rank 160, bf16), one decode step after the other: shadow layers of
// several kinds, each right after a dense layer that leaves nothing of theirs in the caches. Queries drift, so that a
// wanted share of the chunks selected stays from step to step. Run by hand:
// bench_cpu_decode [threads] [tokens] [steps] [shortlist] [instruction set] [share in percent ...]
#include <cstdio>

#include "bench_cpu.h"
#include "cpu/elements.h"
#include "moments.h"

namespace {

using namespace bench;

constexpr int kQueryHeads = 32, kHeads = 8, kDim = 128, kChunk = 8, kRank = 160, kWindow = 64, kOutliers = 48,
              kSelect = 256;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double process_seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Wall and processor time of each step. Processor time leaves out what other processes took; threads that wait for
// each other spend it.
struct Times {
  std::vector<double> wall, processor;
  template <class Work>
  void add(Work&& work) {
    const double wall_begin = wall_seconds(), begin = process_seconds();
    work();
    processor.push_back(process_seconds() - begin);
    wall.push_back(wall_seconds() - wall_begin);
  }
};

// Calls an operation again and again with one workspace.
template <class Params>
class Repeated {
 public:
  Repeated(ThreadPool& pool, InstructionSet set, const Params& p, void (*operation)(const Params&, Execution&),
           std::uint64_t (*workspace)(const Params&, const skv::cpu::ExecutionTraits&))
      : pool_(pool),
        set_(set),
        params(p),
        operation_(operation),
        bytes_(workspace(p, {pool.threads(), set})),
        memory_(static_cast<std::int64_t>(bytes_) + 64) {
    std::memset(memory_.data(), 0, bytes_);
  }
  void operator()() {
    Execution execution{pool_, Workspace(memory_.data(), bytes_), set_, no_path_};
    operation_(params, execution);
  }

 private:
  ThreadPool& pool_;
  InstructionSet set_;

 public:
  Params params;

 private:
  void (*operation_)(const Params&, Execution&);
  std::uint64_t bytes_;
  Buffer<char> memory_;
  std::string no_path_;
};

// What all shadow layers read.
struct Index {
  Index(ThreadPool& pool, std::int64_t tokens)
      : chunks(tokens / kChunk),
        indexed(chunks - 4),
        coefficients(tokens * kRank),
        narrow_coefficients(coefficients.count()),
        basis(kHeads * kRank * kDim),
        narrow_basis(basis.count()),
        value_basis(basis.count()),
        landmarks(kHeads * chunks * kDim),
        narrow_landmarks(landmarks.count()),
        landmark_scales(kHeads * chunks),
        outlier_keys(kHeads * kOutliers * kChunk * kDim),
        outlier_values(outlier_keys.count()),
        recent_keys(kHeads * kWindow * kDim),
        recent_values(recent_keys.count()),
        values(kHeads * tokens * kDim),
        radius(kHeads * chunks),
        moments(kHeads * skv::MomentLayout(kDim).floats),
        rope(kDim, tokens + 1) {
    fill(pool, coefficients, 11, 1.0F);
    fill(pool, basis, 12, 0.08F);
    fill(pool, value_basis, 21, 0.08F);
    fill(pool, landmarks, 13, 0.7F);
    fill(pool, outlier_keys, 14, 1.0F);
    fill(pool, outlier_values, 15, 1.0F);
    fill(pool, recent_keys, 16, 1.0F);
    fill(pool, recent_values, 17, 1.0F);
    fill(pool, values, 18, 1.0F);
    fill(moments, 20, 1.0F);
    // One step for all directions, which are alike.
    constexpr float kStep = 4.0F / 127;
    for (std::int64_t i = 0; i < coefficients.count(); ++i) {
      narrow_coefficients[i] = skv::cpu::from_float<std::int8_t>(from_bf16(coefficients[i]) / kStep);
    }
    for (std::int64_t i = 0; i < basis.count(); ++i) {
      narrow_basis[i] = to_bf16(from_bf16(basis[i]) * kStep);
    }
    std::mt19937_64 random(19);
    for (std::int64_t i = 0; i < radius.count(); ++i) {
      radius[i] = static_cast<float>(random() % 1000) * 1e-3F;
      narrow(i);
    }
    for (int head = 0; head < kHeads; ++head) {
      const skv::MomentLayout layout(kDim);
      moments[head * layout.floats + layout.count] = static_cast<float>(indexed * kChunk);
    }
    state = {indexed * kChunk + 33, indexed * kChunk, static_cast<std::int32_t>(indexed), kOutliers, 0, 0};
  }

  // The landmark of a chunk in INT8.
  void narrow(std::int64_t chunk) {
    float row[kDim], largest = 0;
    for (int d = 0; d < kDim; ++d) {
      row[d] = from_bf16(landmarks[chunk * kDim + d]);
      largest = std::max(largest, std::fabs(row[d]));
    }
    landmark_scales[chunk] = largest / 127.0F;
    for (int d = 0; d < kDim; ++d) {
      narrow_landmarks[chunk * kDim + d] = static_cast<std::int8_t>(std::lrintf(row[d] / landmark_scales[chunk]));
    }
  }

  skv_shadow_layer layer(std::int32_t landmark_type, std::int32_t coefficient_type = SKV_BF16) {
    skv_shadow_layer l{};
    const bool bytes = coefficient_type == SKV_I8;
    l.coefficients = bytes ? static_cast<void*>(narrow_coefficients.data()) : coefficients.data();
    l.basis = bytes ? narrow_basis.data() : basis.data();
    l.landmarks = landmark_type == SKV_I8 ? static_cast<void*>(narrow_landmarks.data()) : landmarks.data();
    l.landmark_scales = landmark_type == SKV_I8 ? landmark_scales.data() : nullptr;
    l.radius = radius.data();
    l.outlier_keys = outlier_keys.data();
    l.outlier_values = outlier_values.data();
    l.recent_keys = recent_keys.data();
    l.recent_values = recent_values.data();
    l.values = values.data();
    l.chunk_capacity = chunks;
    l.outlier_capacity = kOutliers;
    l.moments = moments.data();
    return l;
  }

  std::int64_t chunks, indexed;
  Buffer<Half> coefficients;
  Buffer<std::int8_t> narrow_coefficients;
  Buffer<Half> basis, narrow_basis, value_basis, landmarks;
  Buffer<std::int8_t> narrow_landmarks;
  Buffer<float> landmark_scales;
  Buffer<Half> outlier_keys, outlier_values, recent_keys, recent_values, values;
  Buffer<float> radius, moments;
  Rope rope;
  skv_session_state state;
};

// Queries of consecutive steps, each the one before with a share of something new.
class Queries {
 public:
  Queries(int steps, double drift) : count_(kQueryHeads * kDim), all_(steps * count_) {
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal;
    const float stays = static_cast<float>(std::sqrt(1 - drift * drift)), moves = static_cast<float>(drift);
    for (std::int64_t i = 0; i < all_.count(); ++i) {
      all_[i] = i < count_ ? normal(random) : stays * all_[i - count_] + moves * normal(random);
    }
  }
  const float* of(int step) { return all_.data() + step * count_; }

 private:
  std::int64_t count_;
  Buffer<float> all_;
};

// What of a selection's rest takes part: nothing, all of it by its moments, or what is dropped by predicted values.
enum class Rest { kNone, kTail, kPredicted };

struct Kind {
  const char* name;
  int slots = 0;
  bool keys = false;  // slots hold keys rather than values
  Rest rest = Rest::kNone;
  std::int32_t landmark_type = SKV_BF16, coefficient_type = SKV_BF16;
};

// A shadow layer with slots of its own.
class Shadow {
 public:
  Shadow(const Kind& kind, ThreadPool& pool, InstructionSet set, Index& index, int shortlist)
      : name(kind.name),
        slot_data_(kHeads * std::max(kind.slots, 1) * kChunk * kDim),
        slot_chunk_(kHeads * std::max(kind.slots, 1)),
        slot_stamp_(slot_chunk_.count()),
        new_keys_(kHeads * kDim),
        new_values_(kHeads * kDim),
        output_(kQueryHeads * kDim),
        layer_(index.layer(kind.landmark_type, kind.coefficient_type)),
        state_(index.state),
        step_(pool, set, params(index, kind, shortlist), skv::cpu::decode_layer, skv::cpu::decode_layer_workspace) {
    std::fill_n(slot_chunk_.data(), slot_chunk_.count(), -1);
    std::fill_n(slot_stamp_.data(), slot_stamp_.count(), 0);
    std::memset(slot_data_.data(), 0, static_cast<std::size_t>(slot_data_.count()) * sizeof(Half));
    fill(new_keys_, 4, 1.0F);
    fill(new_values_, 5, 1.0F);
    (kind.keys ? layer_.slot_keys : layer_.slot_values) = slot_data_.data();
    layer_.value_basis = kind.rest == Rest::kPredicted ? index.value_basis.data() : nullptr;
    layer_.slot_chunk = slot_chunk_.data();
    layer_.slot_stamp = slot_stamp_.data();
    step_.params.layers = &layer_;
    step_.params.states = &state_;
    step_.params.counters = &counters;
  }

  void step(const float* queries, bool timed) {
    step_.params.queries = queries;
    ++state_.step;
    if (timed) {
      times.add(step_);
    } else {
      step_();
      counters = {};
    }
  }
  void require_sane() { require_finite(output_, name); }

  const char* name;
  Times times;
  skv_decode_counters counters{};

 private:
  skv_decode_layer_params params(Index& index, const Kind& kind, int shortlist) {
    skv_decode_layer_params p{};
    p.input_type = SKV_F32;
    p.geometry = {kQueryHeads,           kHeads,  kDim,      kChunk, kRank, SKV_BF16, SKV_BF16, kind.landmark_type,
                  kind.coefficient_type, kWindow, kind.slots};
    p.batch = 1;
    p.keys = new_keys_.data();
    p.values = new_values_.data();
    p.rope = index.rope.table;
    p.radius_weight = 0.5F;
    p.select = kSelect;
    p.shortlist = shortlist;
    p.max_chunks = index.chunks;
    p.tail = kind.rest == Rest::kNone ? 0 : 1;
    p.output = output_.data();
    return p;
  }

  Buffer<Half> slot_data_;
  Buffer<std::int32_t> slot_chunk_, slot_stamp_;
  Buffer<float> new_keys_, new_values_, output_;
  skv_shadow_layer layer_;
  skv_session_state state_;
  Repeated<skv_decode_layer_params> step_;
};

// The share of the `select` best chunks that are among those of the step before.
double share_that_stays(ThreadPool& pool, InstructionSet set, Index& index, double drift, int select) {
  constexpr int kSteps = 6;
  Queries queries(kSteps, drift);
  Buffer<std::int32_t> selected(kHeads * select), before(kHeads * select), counts(kHeads);
  skv_shadow_layer layer = index.layer(SKV_BF16);
  skv_landmark_topk_params p{};
  p.query_type = SKV_F32;
  p.geometry = {kQueryHeads, kHeads, kDim, kChunk, kRank, SKV_BF16, SKV_BF16, SKV_BF16, SKV_BF16, kWindow, 0};
  p.batch = 1;
  p.layers = &layer;
  p.states = &index.state;
  p.radius_weight = 0.5F;
  p.select = select;
  p.max_chunks = index.chunks;
  p.selected = selected.data();
  p.selected_count = counts.data();
  Repeated topk(pool, set, p, skv::cpu::landmark_topk, skv::cpu::landmark_topk_workspace);
  std::int64_t same = 0;
  for (int step = 0; step < kSteps; ++step) {
    topk.params.queries = queries.of(step);
    topk();
    for (int head = 0; head < kHeads && step > 0; ++head) {
      const std::int32_t *a = before.data() + head * select, *b = selected.data() + head * select;
      for (int i = 0, j = 0; i < select && j < select;) {
        same += a[i] == b[j];
        const bool first = a[i] <= b[j], second = b[j] <= a[i];
        i += first;
        j += second;
      }
    }
    std::copy_n(selected.data(), selected.count(), before.data());
  }
  return static_cast<double>(same) / (kHeads * select * (kSteps - 1));
}

double drift_for(double share, ThreadPool& pool, InstructionSet set, Index& index, int select) {
  double low = 0, high = 1;
  for (int i = 0; i < 12 && share > 0; ++i) {
    const double middle = (low + high) / 2;
    (share_that_stays(pool, set, index, middle, select) > share ? low : high) = middle;
  }
  return share > 0 ? (low + high) / 2 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, std::int64_t otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  const int threads = static_cast<int>(argument(1, ThreadPool::processors()));
  const std::int64_t tokens = argument(2, 122880);
  const int steps = static_cast<int>(argument(3, 40)), shortlist = static_cast<int>(argument(4, 0));
  const auto set = chosen_set(argument(5, -1));
  std::vector<double> shares;
  for (int i = 6; i < argc; ++i) {
    shares.push_back(std::atof(argv[i]) / 100);
  }
  if (shares.empty()) {
    shares = {0, 0.6, 0.83};
  }
  ThreadPool pool(threads);
  const Machine machine = measure(pool);
  std::printf("%d threads, instruction set %d; memory: read %.1f GB/s, copy %.1f GB/s (read and written)\n", threads,
              static_cast<int>(set), machine.read / kGiga, machine.copy / kGiga);
  Index index(pool, tokens);
  Buffer<Half> dense_keys(kHeads * tokens * kDim), dense_values(dense_keys.count());
  fill(pool, dense_keys, 1, 1.0F);
  fill(pool, dense_values, 2, 1.0F);
  Buffer<float> dense_output(kQueryHeads * kDim);
  skv_dense_layer dense_layer = {dense_keys.data(), dense_values.data(), tokens};
  skv_session_state dense_state{};
  dense_state.length = tokens;
  skv_dense_attention_params d{};
  d.query_type = d.output_type = SKV_F32;
  d.geometry = {kQueryHeads, kHeads, kDim, kChunk, kRank, SKV_BF16, SKV_BF16, SKV_BF16, SKV_BF16, kWindow, 0};
  d.batch = 1;
  d.layers = &dense_layer;
  d.states = &dense_state;
  d.max_length = tokens;
  d.output = dense_output.data();
  Repeated dense(pool, set, d, skv::cpu::dense_attention, skv::cpu::dense_attention_workspace);

  const int places = std::max(shortlist, kSelect);
  for (const double share : shares) {
    const double drift = drift_for(share, pool, set, index, places);
    Queries queries(steps, drift);
    Times dense_times;
    std::vector<std::unique_ptr<Shadow>> layers;
    const auto add = [&](const Kind& kind) {
      layers.push_back(std::make_unique<Shadow>(kind, pool, set, index, shortlist));
    };
    add({"no slots"});
    add({"no slots, int8 landmarks", 0, false, Rest::kNone, SKV_I8});
    add({"no slots, int8 both", 0, false, Rest::kNone, SKV_I8, SKV_I8});
    add({"no slots, tail", 0, false, Rest::kTail});
    add({"values in slots", kSelect});
    add({"keys in slots", places, true});
    add({"keys in slots, int8", places, true, Rest::kNone, SKV_I8});
    add({"keys in slots, tail", places, true, Rest::kTail});
    if (shortlist > 0) {
      add({"no slots, predicted", 0, false, Rest::kPredicted});
      add({"keys in slots, predicted", places, true, Rest::kPredicted});
      add({"no slots, int8 predicted", 0, false, Rest::kPredicted, SKV_I8, SKV_I8});
    }
    for (int step = 0; step < steps; ++step) {
      for (const auto& layer : layers) {
        dense.params.queries = queries.of(step);
        dense_times.add(dense);
        layer->step(queries.of(step), step > 0);
      }
    }
    require_finite(dense_output, "dense attention");
    const double dense_wall = median(dense_times.wall), dense_processor = median(dense_times.processor);
    std::printf("share that stays %.0f %%, shortlist %d: dense %.3f ms (%.3f ms of processors), %.1f GB/s\n",
                100 * share, shortlist, dense_wall * 1e3, dense_processor * 1e3,
                static_cast<double>(tokens) * kHeads * kDim * 4 / dense_wall / kGiga);
    for (const auto& layer : layers) {
      layer->require_sane();
      const double wall = median(layer->times.wall), processor = median(layer->times.processor);
      std::printf("  %-24s %7.3f ms  %7.3f of processors  dense / shadow %5.2f  %5.2f  fetched %.0f of %.0f a step\n",
                  layer->name, wall * 1e3, processor * 1e3, dense_wall / wall, dense_processor / processor,
                  static_cast<double>(layer->counters.fetched) / (steps - 1),
                  static_cast<double>(layer->counters.selected) / (steps - 1));
    }
    std::fflush(stdout);
  }
  return 0;
}
