// Accelerators for machines that have none: two PrivateUse1 devices whose memory is the host's and whose kernels are the
// CPU's. Everything runs when it is asked for, so streams have nothing to do.
//
// EMULATED_DEVICE is their name. As on the real device, tensors on an NPU cannot have channels_last strides.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <chrono>

namespace {

constexpr auto TYPE = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex DEVICES = 2;
thread_local c10::DeviceIndex current_device = 0;
thread_local c10::StreamId current_stream[DEVICES] = {};
std::atomic<c10::StreamId> newest_stream{0};

c10::Device device(c10::DeviceIndex index) {
  TORCH_CHECK(index < DEVICES, "device ", int(index), ": there are ", int(DEVICES), " devices");
  return {TYPE, index < 0 ? current_device : index};
}

// Memory: the host's, labelled with the device.

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto data = c10::GetCPUAllocator()->allocate(bytes);
    data.unsafe_set_device(device(current_device));
    return data;
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return c10::GetCPUAllocator()->raw_deleter();
  }
  void copy_data(void* target, const void* source, std::size_t bytes) const override {
    std::memcpy(target, source, bytes);
  }
};

Memory memory;
REGISTER_ALLOCATOR(TYPE, &memory);

// Devices, streams and events, which are times.

using Time = std::chrono::steady_clock::time_point;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override {
    return TYPE;
  }
  c10::Device exchangeDevice(c10::Device next) const override {
    const auto previous = getDevice();
    setDevice(next);
    return previous;
  }
  c10::Device getDevice() const override {
    return device(current_device);
  }
  void setDevice(c10::Device next) const override {
    current_device = device(next.index()).index();
  }
  void uncheckedSetDevice(c10::Device next) const noexcept override {
    current_device = next.index();
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return DEVICES;
  }
  c10::Stream getStream(c10::Device where) const override {
    where = device(where.index());
    return c10::Stream(c10::Stream::UNSAFE, where, current_stream[where.index()]);
  }
  c10::Stream getDefaultStream(c10::Device where) const override {
    return c10::Stream(c10::Stream::UNSAFE, device(where.index()), 0);
  }
  c10::Stream getNewStream(c10::Device where, int) const override {
    return c10::Stream(c10::Stream::UNSAFE, device(where.index()), ++newest_stream);
  }
  c10::Stream exchangeStream(c10::Stream next) const override {
    const auto previous = getStream(next.device());
    current_stream[next.device_index()] = next.id();
    return previous;
  }
  void record(void** event, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {
    if (*event == nullptr) {
      *event = new Time;
    }
    *static_cast<Time*>(*event) = std::chrono::steady_clock::now();
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<Time*>(event);
  }
  double elapsedTime(void* start, void* end, const c10::DeviceIndex) const override {
    return std::chrono::duration<double, std::milli>(*static_cast<Time*>(end) - *static_cast<Time*>(start)).count();
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
  void synchronizeEvent(void*) const override {}
  bool queryStream(const c10::Stream&) const override {
    return true;
  }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  c10::DeviceIndex deviceCount() const override {
    return DEVICES;
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return current_device;
  }
  void setCurrentDevice(c10::DeviceIndex next) const override {
    current_device = device(next).index();
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex next) const override {
    const auto previous = current_device;
    if (next >= 0) {
      setCurrentDevice(next);
    }
    return previous;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex next) const override {
    return exchangeDevice(next);
  }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    return c10::GetCPUAllocator();
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto next = memory.allocate(bytes);
    std::memcpy(next.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(next));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

const bool hooks_registered = (at::RegisterPrivateUse1HooksInterface(new Hooks), true);

// The operations that a CPU kernel cannot do for the device: making tensors, views and copies, and convolution.

constexpr c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

void refuse_channels_last(bool channels_last) {
  static const bool refuses = std::string(std::getenv("EMULATED_DEVICE")) == "npu";
  TORCH_CHECK(!(refuses && channels_last), "npu: channels_last memory format is not supported");
}

// The same memory as a CPU tensor.
at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().is_cpu()) {
    return tensor;
  }
  const auto options = tensor.options().device(at::kCPU);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

at::Tensor empty(
    at::IntArrayRef size,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<at::Device> where,
    std::optional<bool>,
    std::optional<at::MemoryFormat> format) {
  refuse_channels_last(format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d);
  const c10::DeviceGuard guard(device(where ? where->index() : -1));
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    at::IntArrayRef size,
    at::IntArrayRef stride,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<at::Device> where,
    std::optional<bool>) {
  const c10::DeviceGuard guard(device(where ? where->index() : -1));
  auto made = at::detail::empty_strided_generic(size, stride, &memory, KEYS, c10::dtype_or_default(dtype));
  refuse_channels_last(made.is_contiguous(at::MemoryFormat::ChannelsLast) && !made.is_contiguous());
  return made;
}

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool) {
  on_host(target).copy_(on_host(source));
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& target) {
  target.resize_(source.sizes());
  return copy_from(source, target, false);
}

at::Scalar local_scalar_dense(const at::Tensor& tensor) {
  return on_host(tensor).item();
}

at::Tensor convolution(
    const at::Tensor& input,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias,
    at::IntArrayRef stride,
    at::IntArrayRef padding,
    at::IntArrayRef dilation,
    bool transposed,
    at::IntArrayRef output_padding,
    int64_t groups) {
  const auto host_bias = bias ? std::make_optional(on_host(*bias)) : std::nullopt;
  return at::convolution(
             on_host(input), on_host(weight), host_bias, stride, padding, dilation, transposed, output_padding, groups)
      .to(input.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient,
    const at::Tensor& input,
    const at::Tensor& weight,
    at::IntArrayRef stride,
    at::IntArrayRef padding,
    at::IntArrayRef dilation,
    bool transposed,
    at::IntArrayRef output_padding,
    int64_t groups,
    std::array<bool, 3> wanted) {
  auto [of_input, of_weight, of_bias] = at::convolution_backward(
      on_host(gradient), on_host(input), on_host(weight), weight.sizes().slice(0, 1), stride, padding, dilation,
      transposed, output_padding, groups, wanted);
  const auto moved = [&](const at::Tensor& tensor) { return tensor.defined() ? tensor.to(input.device()) : tensor; };
  return {moved(of_input), moved(of_weight), moved(of_bias)};
}

void record_stream(at::Tensor&, at::Stream) {}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, registry) {
  registry.impl("empty.memory_format", &empty);
  registry.impl("empty_strided", &empty_strided);
  registry.impl("_copy_from", &copy_from);
  registry.impl("_copy_from_and_resize", &copy_from_and_resize);
  registry.impl("_local_scalar_dense", &local_scalar_dense);
  registry.impl("record_stream", &record_stream);
  registry.impl("as_strided", &at::native::as_strided_tensorimpl);
  registry.impl("view", &at::native::view);
  registry.impl("_reshape_alias", &at::native::_reshape_alias);
  registry.impl("resize_", &at::native::resize_);
  registry.impl("set_.source_Storage", static_cast<at::Tensor& (*)(at::Tensor&, at::Storage)>(&at::native::set_));
  registry.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  registry.impl("convolution_overrideable", &convolution);
  registry.impl("convolution_backward_overrideable", &convolution_backward);
}

TORCH_LIBRARY(device_emulation, registry) {
  registry.def("device_count() -> int", [] { return int64_t(DEVICES); });
}

void on_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  at::native::cpu_fallback(operation, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, registry) {
  registry.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

// Autocast: the operations of AlexNet that autocast runs in lower precision on a CPU too, so that the losses compare.

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, registry) {
  registry.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
}

} // namespace
