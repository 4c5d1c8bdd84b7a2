// Times what builds a cache, prefills it and surrounds attention, on one GPU, and sets every time against its
// floor: the bytes that must move over the measured rate of a device copy (or of the link), or the operations
// over the measured rate of a large bf16 product, whichever is longer. Sizes are those of one layer of an 8B
// Llama with 122880 tokens; inputs are larger than the caches. Run without arguments.
#include <functional>
#include <string>

#include "gpu_test.h"
#include "moments.h"
#include "value_types.h"

namespace {

using gpu::Array;

constexpr std::int64_t kTokens = 122'880;
constexpr std::int32_t kHeads = 8, kDim = 128, kQueryHeads = 32, kChunk = 8, kRank = 160;
constexpr std::int64_t kWidth = kHeads * kDim;
constexpr std::int64_t kChunks = kTokens / kChunk;

struct Ceilings {
  double memory = 0, link = 0, products = 0;  // bytes/s, bytes/s, FLOP/s
};

// Median milliseconds of one call.
double time_of(skv::Backend& backend, const std::function<void()>& work, int calls = 4) {
  for (int i = 0; i < 3; ++i) {
    work();
  }
  std::vector<double> times;
  for (int repeat = 0; repeat < 9; ++repeat) {
    backend.mark(0);
    for (int i = 0; i < calls; ++i) {
      work();
    }
    backend.mark(1);
    times.push_back(static_cast<double>(backend.elapsed(0, 1)) / calls);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void row(const char* what, double milliseconds, double bytes, double operations, double floor_seconds) {
  std::printf("%-44s %9.4f ms %9.1f GB/s %8.1f TFLOP/s %6.1f %% of the floor's rate\n", what, milliseconds,
              bytes / milliseconds * 1e-6, operations / milliseconds * 1e-9, floor_seconds * 1e5 / milliseconds);
}

void fill_random(skv::Backend& backend, const Array& array, std::int64_t count, std::uint64_t seed, float deviation = 1,
                 std::int32_t type = SKV_BF16) {
  skv_random_fill_params p = {};
  p.type = type;
  p.output = array;
  p.count = count;
  p.seed = seed;
  p.deviation = deviation;
  backend.random_fill(p);
}

Array random_array(skv::Backend& backend, std::int64_t count, std::uint64_t seed, float deviation = 1) {
  Array array(backend, count * 2);
  fill_random(backend, array, count, seed, deviation);
  return array;
}

}  // namespace

int main() {
  std::string reason;
  auto opened = gpu::open(reason);
  if (!opened) {
    return check::skip(reason.c_str());
  }
  skv::Backend& backend = *opened;
  skv_device_info info = {};
  backend.describe(info);
  const std::string blas = backend.describe_blas();
  const bool has_blas = blas.rfind("cuBLAS was", 0) != 0;
  std::printf("%s, %d SMs; %s\n", info.name, info.multiprocessors, blas.c_str());
  auto generator = check::fresh_generator();
  Ceilings ceiling;

  // --- Ceilings ---
  {
    const std::int64_t bytes = std::int64_t{2} << 30;
    Array a(backend, bytes), b(backend, bytes);
    fill_random(backend, a, bytes / 2, 1);
    const double ms = time_of(backend, [&] { backend.copy(b, a, static_cast<std::uint64_t>(bytes)); });
    ceiling.memory = 2.0 * static_cast<double>(bytes) / ms * 1e3;
    void* const host = backend.allocate_host(std::uint64_t{1} << 30);
    const double link = time_of(
        backend, [&] { backend.copy(host, a, std::uint64_t{1} << 30); }, 1);
    ceiling.link = static_cast<double>(std::uint64_t{1} << 30) / link * 1e3;
    backend.free_host(host);
  }
  skv_matmul_params product = {};
  product.input_type = product.weight_type = product.output_type = SKV_BF16;
  if (has_blas) {
    const std::int64_t n = 8192;
    Array a = random_array(backend, n * n, 2), b = random_array(backend, n * n, 3), c(backend, n * n * 2);
    skv_matmul_params p = product;
    p.input = a;
    p.weight = b;
    p.output = c;
    p.rows = p.columns = p.inner = n;
    ceiling.products = 2.0 * static_cast<double>(n * n * n) / time_of(backend, [&] { backend.matmul(p); }) * 1e3;
  } else {
    ceiling.products = 8e14;
    std::printf("no cuBLAS: 800 TFLOP/s assumed as the ceiling\n");
  }
  std::printf("ceilings: copy %.2f TB/s (read + write), to host %.1f GB/s, bf16 product %.0f TFLOP/s\n\n",
              ceiling.memory * 1e-12, ceiling.link * 1e-9, ceiling.products * 1e-12);
  const auto report = [&](const char* what, double ms, double bytes, double operations = 0) {
    row(what, ms, bytes, operations, std::max(bytes / ceiling.memory, operations / ceiling.products));
  };

  // Keys with a spectrum: normal coefficients times directions whose strength falls as a power.
  const std::int64_t elements = kTokens * kWidth;
  Array raw(backend, elements * 2);
  if (has_blas) {
    const std::int64_t directions = 512;
    auto mixing = gpu::normals(generator, kWidth * directions);
    for (std::size_t i = 0; i < mixing.size(); ++i) {
      mixing[i] *= static_cast<float>(0.3 * std::pow(static_cast<double>(i % directions + 1), -0.7));
    }
    Array weight(backend, mixing, SKV_BF16), z = random_array(backend, kTokens * directions, 4);
    skv_matmul_params p = product;
    p.input = z;
    p.weight = weight;
    p.output = raw;
    p.rows = kTokens;
    p.columns = kWidth;
    p.inner = directions;
    backend.matmul(p);
    backend.synchronize();
  } else {
    fill_random(backend, raw, elements, 4);
  }
  Array values = random_array(backend, elements, 5);
  Array rotated(backend, elements * 2), stored(backend, elements * 2), kept(backend, elements * 2);
  const gpu::Rotation rotation(kDim, SKV_HALF_SPLIT, 500000, 1, kTokens);
  Array coarse = Array::of(backend, rotation.coarse), fine = Array::of(backend, rotation.fine);
  const double key_bytes = static_cast<double>(elements) * 2;

  // --- Taking tokens ---
  {
    skv_store_tokens_params p = {};
    p.input_type = p.storage_type = SKV_BF16;
    p.key_value_heads = kHeads;
    p.head_dim = kDim;
    p.count = kTokens;
    p.keys = raw;
    p.values = values;
    p.rotated_keys = rotated;
    p.raw_keys = kept;
    p.stored_values = stored;
    p.capacity = kTokens;
    p.rope = rotation.on(coarse, fine);
    report("store_tokens 122880 x 8 x 128", time_of(backend, [&] { backend.store_tokens(p); }), 5 * key_bytes);
  }
  {
    const std::int64_t count = 32768;
    Array q = random_array(backend, count * kQueryHeads * kDim, 6);
    skv_rope_params p = {};
    p.type = SKV_BF16;
    p.input = p.output = q;
    p.count = count;
    p.heads = kQueryHeads;
    p.head_dim = kDim;
    p.rope = rotation.on(coarse, fine);
    report("rope 32768 x 32 x 128 in place", time_of(backend, [&] { backend.rope(p); }),
           2.0 * static_cast<double>(count * kQueryHeads * kDim) * 2);
  }

  // --- Sealing ---
  Array landmarks(backend, kHeads * kChunks * kDim * 2), scales(backend, kHeads * kChunks * 4);
  Array radius(backend, kHeads * kChunks * 4), cosine(backend, kHeads * kChunks * 4), ids(backend, kHeads * 48 * 4);
  Array outliers(backend, kHeads * 48 * kChunk * kDim * 2);
  skv_landmark_build_params build = {};
  build.storage_type = build.landmark_type = SKV_BF16;
  build.key_value_heads = kHeads;
  build.head_dim = kDim;
  build.chunk = kChunk;
  build.rotated_keys = rotated;
  build.capacity = kTokens;
  build.chunks = build.chunk_capacity = kChunks;
  build.landmarks = landmarks;
  build.landmark_scales = scales.as<float>();
  build.radius = radius.as<float>();
  build.cosine = cosine.as<float>();
  report("landmark_build bf16", time_of(backend, [&] { backend.landmark_build(build); }), key_bytes * 9 / 8);
  {
    auto bytes = build;
    bytes.landmark_type = SKV_I8;
    report("landmark_build i8", time_of(backend, [&] { backend.landmark_build(bytes); }), key_bytes * 17 / 16);
  }
  skv_outlier_select_params select = {};
  select.key_value_heads = kHeads;
  select.cosine = cosine.as<float>();
  select.chunks = select.chunk_capacity = kChunks;
  select.count = 48;
  select.ids = ids.as<std::int32_t>();
  select.radius = radius.as<float>();
  backend.landmark_build(build);
  report("outlier_select 48 of 15360 x 8", time_of(backend, [&] { backend.outlier_select(select); }),
         static_cast<double>(kHeads * kChunks) * 4);
  skv_chunk_gather_params gather = {};
  gather.type = SKV_BF16;
  gather.key_value_heads = kHeads;
  gather.head_dim = kDim;
  gather.chunk = kChunk;
  gather.source = rotated;
  gather.capacity = kTokens;
  gather.ids = ids.as<std::int32_t>();
  gather.count = 48;
  gather.target = outliers;
  gather.target_capacity = 48;
  report("chunk_gather 48 x 8", time_of(backend, [&] { backend.chunk_gather(gather); }),
         2.0 * kHeads * 48 * kChunk * kDim * 2);
  const double seal = time_of(backend, [&] {
    backend.landmark_build(build);
    backend.outlier_select(select);
    backend.chunk_gather(gather);
    backend.chunk_gather(gather);
  });
  report("seal: landmarks, outliers, both gathers", seal, key_bytes * 9 / 8);
  {
    const skv::MomentLayout layout(kDim);
    Array moments(backend, kHeads * layout.floats * 4);
    skv_moment_update_params p = {};
    p.storage_type = SKV_BF16;
    p.key_value_heads = kHeads;
    p.head_dim = kDim;
    p.chunk = kChunk;
    p.rotated_keys = rotated;
    p.values = stored;
    p.capacity = kTokens;
    p.chunks = p.chunk_capacity = kChunks;
    p.radius = radius.as<float>();
    p.replace = 1;
    p.moments = moments.as<float>();
    backend.reserve_workspace(backend.workspace_bytes(SKV_OP_MOMENT_UPDATE, &p));
    backend.moment_update(p);
    const auto sums = moments.values(SKV_F32);
    CHECK_EQUAL(sums[static_cast<std::size_t>(layout.count)], static_cast<float>((kChunks - select.count) * kChunk));
    const double products = 2.0 * kHeads * kDim * kDim;  // of a token
    report("moment_update 122880 x 8 x 128", time_of(backend, [&] { backend.moment_update(p); }), 2 * key_bytes,
           products * kTokens);
    // A fold: keys and values of 64 tokens, moments read and written.
    p.replace = 0;
    p.chunks = 8;
    const double fold_bytes = 2.0 * kHeads * (8 * kChunk * kDim * 2 + static_cast<double>(layout.floats) * 4);
    report("moment_update, a fold of 8 chunks",
           time_of(
               backend, [&] { backend.moment_update(p); }, 32),
           fold_bytes, products * 8 * kChunk);
  }
  for (const std::int32_t type : {SKV_BF16, SKV_F8_E4M3, SKV_F12_E4M7, SKV_F6_E2M3}) {
    const std::int64_t bytes = skv::value_bytes(type, elements);
    void* const host = backend.allocate_host(static_cast<std::uint64_t>(bytes));
    skv_value_store_params p = {};
    p.storage_type = SKV_BF16;
    p.value_type = type;
    p.key_value_heads = kHeads;
    p.head_dim = kDim;
    p.chunk = kChunk;
    p.source = stored;
    p.capacity = kTokens;
    p.chunks = p.chunk_capacity = kChunks;
    p.values = host;
    p.value_scales = scales.as<float>();
    const double ms = time_of(
        backend, [&] { backend.value_store(p); }, 1);
    const std::string name = type == SKV_BF16       ? "bf16"
                             : type == SKV_F8_E4M3  ? "e4m3"
                             : type == SKV_F12_E4M7 ? "e4m7"
                                                    : "e2m3";
    row(("value_store " + name + " (link)").c_str(), ms, static_cast<double>(bytes), 0,
        static_cast<double>(bytes) / ceiling.link);
    backend.free_host(host);
  }

  // --- Low rank ---
  Array coefficients(backend, kTokens * kRank * 2), basis(backend, kWidth * kRank * 2), singular(backend, kRank * 4);
  Array energy(backend, 8), direction_scales(backend, kRank * 4);
  const double n = static_cast<double>(kTokens), m = static_cast<double>(kWidth);
  const double factor_operations = 2 * n * m * m + 2 * n * m * kRank;
  skv_low_rank_factor_params factor = {};
  factor.type = factor.coefficient_type = SKV_BF16;
  factor.keys = raw;
  factor.tokens = kTokens;
  factor.key_value_heads = kHeads;
  factor.head_dim = kDim;
  factor.rank = kRank;
  factor.coefficients = coefficients;
  factor.basis = basis;
  if (has_blas) {
    auto p = factor;
    p.singular_values = singular.as<float>();
    p.energy = energy.as<float>();
    const std::uint64_t workspace = backend.workspace_bytes(SKV_OP_LOW_RANK_FACTOR, &p);
    backend.reserve_workspace(workspace);
    backend.low_rank_factor(p);
    const auto captured = energy.values(SKV_F32), s = singular.values(SKV_F32);
    CHECK(std::isfinite(s[0]) && s[0] > 0 && captured[1] > 0 && captured[1] <= 1);
    std::printf("  captures %.6f of the energy, singular values %.5g to %.5g, workspace %.0f MB\n",
                static_cast<double>(captured[1]), static_cast<double>(s[0]), static_cast<double>(s[kRank - 1]),
                static_cast<double>(workspace) * 1e-6);
    {
      // What is missed against a subspace wide and long enough to have converged.
      auto best = p;
      best.iterations = 12;
      best.oversampling = 96;
      backend.reserve_workspace(backend.workspace_bytes(SKV_OP_LOW_RANK_FACTOR, &best));
      backend.low_rank_factor(best);
      const double least = 1 - static_cast<double>(energy.values(SKV_F32)[1]);
      for (const int iterations : {1, 2, 3, 4, 5}) {
        p.iterations = iterations;
        const double ms = time_of(
            backend, [&] { backend.low_rank_factor(p); }, 2);
        const double missed = 1 - static_cast<double>(energy.values(SKV_F32)[1]);
        std::printf("  with %d iterations: %.4f ms, error %.3f %% above the converged one\n", iterations, ms,
                    100 * (std::sqrt(missed / least) - 1));
      }
    }
    {
      // Where the time goes: few tokens leave only the work on small matrices, of which iterations are counted out.
      p.iterations = 0;
      const double all = time_of(
          backend, [&] { backend.low_rank_factor(p); }, 2);
      auto few = p;
      few.tokens = 1024;
      constexpr int kFewer = 4, kMore = 12;
      few.iterations = kMore;
      const double more = time_of(
          backend, [&] { backend.low_rank_factor(few); }, 2);
      few.iterations = kFewer;
      const double fewer = time_of(
          backend, [&] { backend.low_rank_factor(few); }, 2);
      const double iteration = (more - fewer) / (kMore - kFewer);
      Array packed = random_array(backend, kRank * kWidth, 18);
      skv_matmul_params project = product;
      project.input = raw;
      project.weight = packed;
      project.output = coefficients;
      project.rows = kTokens;
      project.columns = kRank;
      project.inner = kWidth;
      const double projection = time_of(
          backend, [&] { backend.matmul(project); }, 4);
      std::printf(
          "  of %.4f ms: Gram matrix %.4f, an iteration %.4f, last orthonormalization, Jacobi and basis %.4f, "
          "coefficients %.4f\n",
          all, all - fewer - projection, iteration, fewer - kFewer * iteration, projection);
      backend.low_rank_factor(p);
    }
    backend.begin_graph();
    p.iterations = 0;
    backend.low_rank_factor(p);
    auto graph = backend.end_graph();
    report("low_rank_factor, by graph replay",
           time_of(
               backend, [&] { backend.launch_graph(*graph); }, 2),
           2 * key_bytes, factor_operations);
  } else {
    fill_random(backend, coefficients, kTokens * kRank, 7);
    fill_random(backend, basis, kWidth * kRank, 8, 0.03F);
  }
  // Coefficients of eight bits take half of the arrays; without a factorization there are none.
  for (const std::int32_t type : has_blas ? std::vector{SKV_BF16, SKV_I8} : std::vector{SKV_BF16}) {
    const double coefficient_bytes = n * kRank * (type == SKV_I8 ? 1 : 2);
    const auto report_of = [&](const std::string& what, double ms, double bytes, double operations) {
      report((what + (type == SKV_I8 ? ", i8 coefficients" : "")).c_str(), ms, bytes, operations);
    };
    float* const scales_of = type == SKV_I8 ? direction_scales.as<float>() : nullptr;
    Array few(backend, 16384 * kRank * 2), residual(backend, 16384 * 4), value_basis(backend, kWidth * kRank * 2);
    if (has_blas) {
      factor.coefficient_type = type;
      factor.coefficient_scales = scales_of;
      backend.reserve_workspace(backend.workspace_bytes(SKV_OP_LOW_RANK_FACTOR, &factor));
      report_of("low_rank_factor 122880 x 1024, rank 160",
                time_of(
                    backend, [&] { backend.low_rank_factor(factor); }, 2),
                2 * key_bytes, factor_operations);
      if (type == SKV_I8) {
        const auto scales = direction_scales.values(SKV_F32);
        CHECK(std::all_of(scales.begin(), scales.end(), [](float x) { return std::isfinite(x) && x > 0; }));
      }
      skv_value_fit_params fit = {};
      fit.storage_type = SKV_BF16;
      fit.coefficient_type = type;
      fit.key_value_heads = kHeads;
      fit.head_dim = kDim;
      fit.rank = kRank;
      fit.coefficients = coefficients;
      fit.values = stored;
      fit.capacity = fit.tokens = kTokens;
      fit.value_basis = value_basis;
      backend.reserve_workspace(backend.workspace_bytes(SKV_OP_VALUE_FIT, &fit));
      report_of("value_fit 122880 x 160 x 8 x 128", time_of(backend, [&] { backend.value_fit(fit); }),
                key_bytes + coefficient_bytes, 2 * n * m * kRank);
      const auto fitted = value_basis.values(SKV_BF16);
      CHECK(std::all_of(fitted.begin(), fitted.end(), [](float x) { return std::isfinite(x); }));
      CHECK(std::any_of(fitted.begin(), fitted.end(), [](float x) { return x != 0; }));
    }
    skv_low_rank_project_params project = {};
    project.type = SKV_BF16;
    project.coefficient_type = type;
    project.keys = raw;
    project.key_value_heads = kHeads;
    project.head_dim = kDim;
    project.rank = kRank;
    project.basis = basis;
    project.coefficients = few;
    project.coefficient_scales = scales_of;
    project.residual = residual.as<float>();
    for (const std::int64_t count : {64, 16384}) {
      project.count = count;
      const double rows = static_cast<double>(count);
      report_of("low_rank_project, " + std::to_string(count) + " tokens",
                time_of(backend, [&] { backend.low_rank_project(project); }), (rows + kRank) * m * 2,
                4 * rows * m * kRank);
    }
    skv_rebuild_keys_params rebuild = {};
    rebuild.type = SKV_BF16;
    rebuild.coefficient_type = type;
    rebuild.coefficients = coefficients;
    rebuild.basis = basis;
    rebuild.key_value_heads = kHeads;
    rebuild.head_dim = kDim;
    rebuild.rank = kRank;
    rebuild.count = kTokens;
    rebuild.rotated_keys = kept;
    rebuild.capacity = kTokens;
    rebuild.rope = rotation.on(coarse, fine);
    report_of("rebuild_keys 122880", time_of(backend, [&] { backend.rebuild_keys(rebuild); }),
              key_bytes + coefficient_bytes, 2 * n * m * kRank);
  }

  // --- Prefill attention ---
  for (const auto& [head_dim, count, first] :
       {std::tuple{128, 32768, 0}, std::tuple{128, 8192, 0}, std::tuple{128, 4096, 114688}, std::tuple{64, 16384, 0},
        std::tuple{96, 16384, 0}, std::tuple{256, 8192, 0}}) {
    const std::int64_t total = static_cast<std::int64_t>(first) + count;
    Array q = random_array(backend, std::int64_t{count} * kQueryHeads * head_dim, 9);
    Array k = random_array(backend, total * kHeads * head_dim, 10),
          v = random_array(backend, total * kHeads * head_dim, 11);
    Array out(backend, std::int64_t{count} * kQueryHeads * head_dim * 2);
    skv_prefill_attention_params p = {};
    p.query_type = p.output_type = SKV_BF16;
    p.geometry.query_heads = kQueryHeads;
    p.geometry.key_value_heads = kHeads;
    p.geometry.head_dim = head_dim;
    p.geometry.storage_type = SKV_BF16;
    p.queries = q;
    p.count = count;
    p.first_position = first;
    p.keys = k;
    p.values = v;
    p.capacity = total;
    p.output = out;
    const double pairs = static_cast<double>(count) * first + 0.5 * static_cast<double>(count) * (count + 1.0);
    const std::string what = "prefill_attention " + std::to_string(count) + " after " + std::to_string(first) + " x " +
                             std::to_string(head_dim);
    report(what.c_str(),
           time_of(
               backend, [&] { backend.prefill_attention(p); }, 1),
           2.0 * static_cast<double>(total * kHeads * head_dim * 2), 4.0 * pairs * kQueryHeads * head_dim);
    const auto sample = out.values(SKV_BF16);
    CHECK(std::all_of(sample.begin(), sample.end(), [](float x) { return std::isfinite(x); }));
  }

  // --- The rest of a layer ---
  for (const std::int64_t rows : {1, 2, 4, 8, 16, 32}) {
    const std::int64_t columns = 14336, inner = 4096, copies = 8;  // several weights, so that none stays in the cache
    Array weight = random_array(backend, copies * columns * inner, 12, 0.02F),
          x = random_array(backend, rows * inner, 13);
    Array y(backend, rows * columns * 2);
    skv_matmul_params p = product;
    p.input = x;
    p.output = y;
    p.rows = rows;
    p.columns = columns;
    p.inner = inner;
    std::int64_t turn = 0;
    const double ms = time_of(
        backend,
        [&] {
          p.weight = weight.as<std::uint8_t>() + turn++ % copies * columns * inner * 2;
          backend.matmul(p);
        },
        16);
    report(("matmul " + std::to_string(rows) + " x 14336 x 4096").c_str(), ms, static_cast<double>(columns * inner) * 2,
           2.0 * static_cast<double>(rows * columns * inner));
  }
  {
    const std::int64_t rows = 32768, width = 4096;
    Array a = random_array(backend, rows * width, 14), b = random_array(backend, rows * width, 15),
          c(backend, rows * width * 4);
    Array weight = random_array(backend, width, 16);
    const double bytes = static_cast<double>(rows * width) * 2;
    skv_rms_norm_params norm = {};
    norm.type = norm.weight_type = norm.output_type = SKV_BF16;
    norm.input = a;
    norm.weight = weight;
    norm.output = c;
    norm.rows = rows;
    norm.width = width;
    norm.epsilon = 1e-5F;
    report("rms_norm 32768 x 4096", time_of(backend, [&] { backend.rms_norm(norm); }), 2 * bytes);
    norm.residual = b;
    report("rms_norm with residual", time_of(backend, [&] { backend.rms_norm(norm); }), 4 * bytes);
    skv_silu_multiply_params silu = {};
    silu.type = SKV_BF16;
    silu.gate = a;
    silu.up = b;
    silu.output = c;
    silu.rows = rows;
    silu.width = width;
    report("silu_multiply 32768 x 4096", time_of(backend, [&] { backend.silu_multiply(silu); }), 3 * bytes);
    skv_add_params sum = {};
    sum.type = SKV_BF16;
    sum.a = a;
    sum.b = b;
    sum.output = c;
    sum.count = rows * width;
    report("add 134M", time_of(backend, [&] { backend.add(sum); }), 3 * bytes);
    skv_convert_params convert = {};
    convert.input_type = SKV_BF16;
    convert.output_type = SKV_F32;
    convert.input = b;
    convert.output = c;
    convert.count = rows * width;
    report("convert 134M bf16 to f32", time_of(backend, [&] { backend.convert(convert); }), 3 * bytes);
    report("random_fill 134M bf16", time_of(backend, [&] { fill_random(backend, a, rows * width, 17); }), bytes);
    skv_argmax_params argmax = {};
    argmax.type = SKV_BF16;
    argmax.input = b;
    argmax.rows = 1;
    argmax.width = 128'256;
    argmax.ids = ids.as<std::int32_t>();
    report("argmax 1 x 128256",
           time_of(
               backend, [&] { backend.argmax(argmax); }, 32),
           128'256 * 2);
  }
  return check::verdict();
}
