// A fault of a kernel is a status: the process lives, and what is left can be closed.
#include "gpu_test.h"

int main() {
  std::string reason;
  auto backend = gpu::open(reason), bystander = gpu::open(reason);
  if (!backend) {
    return check::skip(reason.c_str());
  }
  void* const pinned = backend->allocate_host(1 << 20);
  skv_add_params p = {};
  p.type = SKV_F32;
  p.a = p.b = p.output = reinterpret_cast<void*>(std::uintptr_t{1} << 20);  // nobody's memory
  p.count = 1000;
  backend->add(p);
  CHECK(gpu::throws(SKV_DEVICE_ERROR, [&] { backend->synchronize(); }));
  // The error stays with the device's context, for everybody who shares it, as a status every time.
  CHECK(gpu::throws(SKV_DEVICE_ERROR, [&] { backend->allocate_device(1); }));
  CHECK(gpu::throws(SKV_DEVICE_ERROR, [&] { bystander->synchronize(); }));
  CHECK(gpu::throws(SKV_DEVICE_ERROR, [&] { backend->free_host(pinned); }));
  // Neither is a new context given, nor is it said that there is no device.
  CHECK(gpu::throws(SKV_DEVICE_ERROR, [&] {
    std::string ignored;
    (void)gpu::open(ignored);
  }));
  backend.reset();
  bystander.reset();
  CHECK(true);  // still here
  return check::verdict();
}
