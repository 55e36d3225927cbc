// Samples memory at a fixed rate from a thread that never needs the Python interpreter.
//
// Two sources: the resident memory of this process (/proc/self/statm), and the used memory of one GPU or MIG instance
// (NVML, loaded at run time, so that this library builds and loads without a driver). A ring buffer holds the newest
// samples; its one writer never waits, and readers may copy from it at any time. Plain C interface, for ctypes.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

namespace {

using Clock = std::chrono::steady_clock;

std::uint64_t nanoseconds(Clock::time_point time) {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count());
}

class Source {
 public:
  virtual ~Source() = default;
  virtual bool read(std::uint64_t& bytes) = 0;
};

class ProcessMemory final : public Source {
 public:
  ProcessMemory() : file_(open("/proc/self/statm", O_RDONLY | O_CLOEXEC)), page_bytes_(sysconf(_SC_PAGESIZE)) {
    if (file_ < 0) throw std::runtime_error("this system has no /proc/self/statm");
  }
  ~ProcessMemory() override { close(file_); }

  bool read(std::uint64_t& bytes) override {
    char text[128];
    const ssize_t size = pread(file_, text, sizeof text - 1, 0);
    if (size <= 0) return false;
    text[size] = '\0';
    const char* resident = std::strchr(text, ' ');
    if (!resident) return false;
    bytes = std::strtoull(resident, nullptr, 10) * static_cast<std::uint64_t>(page_bytes_);
    return true;
  }

 private:
  int file_;
  long page_bytes_;
};

class GpuMemory final : public Source {
 public:
  explicit GpuMemory(const char* uuid) {
    library_.reset(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL));
    if (!library_) throw std::runtime_error("no libnvidia-ml.so.1 here");
    const auto init = function<int()>("nvmlInit_v2");
    const auto by_uuid = function<int(const char*, void**)>("nvmlDeviceGetHandleByUUID");
    read_ = function<int(void*, Memory*)>("nvmlDeviceGetMemoryInfo");
    shutdown_ = function<int()>("nvmlShutdown");
    check("nvmlInit_v2", init());
    const int code = by_uuid(uuid, &device_);
    if (code) shutdown_();
    check("nvmlDeviceGetHandleByUUID", code);
  }
  ~GpuMemory() override { shutdown_(); }

  bool read(std::uint64_t& bytes) override {
    Memory memory{};
    if (read_(device_, &memory)) return false;
    bytes = memory.total - memory.free;
    return true;
  }

 private:
  // nvmlMemory_t of nvml.h.
  struct Memory {
    unsigned long long total, free, used;
  };
  struct Unload {
    void operator()(void* library) const { dlclose(library); }
  };

  template <typename Signature>
  Signature* function(const char* name) {
    void* found = dlsym(library_.get(), name);
    if (!found) throw std::runtime_error(std::string("this NVML has no ") + name);
    return reinterpret_cast<Signature*>(found);
  }
  static void check(const char* name, int code) {
    if (code) throw std::runtime_error(std::string(name) + " failed with NVML code " + std::to_string(code));
  }

  std::unique_ptr<void, Unload> library_;
  void* device_ = nullptr;
  int (*read_)(void*, Memory*) = nullptr;
  int (*shutdown_)() = nullptr;
};

// Neither the sampling thread nor a reader ever takes a lock for these.
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

// Sample number i lies in slot i % capacity while `version` is 2 * i + 2; it is odd during a write.
struct Slot {
  std::atomic<std::uint64_t> version{0}, time_ns{0}, bytes{0};
};

class Sampler {
 public:
  Sampler(std::unique_ptr<Source> source, double rate_hz, std::uint64_t capacity)
      : source_(std::move(source)), period_(std::chrono::nanoseconds(static_cast<std::int64_t>(1e9 / rate_hz))),
        ring_(capacity) {}
  ~Sampler() { stop(); }

  // A sample before the thread starts and one after it ended: even the shortest stretch has two.
  void start() {
    if (thread_.joinable()) return;
    stopping_ = false;
    sample();
    thread_ = std::thread([this] { run(); });
  }

  void stop() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
    sample();
  }

  std::uint64_t copy(std::uint64_t& from, std::uint64_t room, std::uint64_t* times_ns, std::uint64_t* bytes) const {
    const std::uint64_t end = written_.load(std::memory_order_acquire);
    if (end > ring_.size() && from < end - ring_.size()) from = end - ring_.size();
    std::uint64_t count = 0;
    for (; from < end && count < room; ++from) {
      const Slot& slot = ring_[from % ring_.size()];
      const std::uint64_t version = slot.version.load(std::memory_order_acquire);
      times_ns[count] = slot.time_ns.load(std::memory_order_relaxed);
      bytes[count] = slot.bytes.load(std::memory_order_relaxed);
      std::atomic_thread_fence(std::memory_order_acquire);
      // Overwritten meanwhile: this sample is lost.
      if (version == 2 * from + 2 && slot.version.load(std::memory_order_relaxed) == version) ++count;
    }
    return count;
  }

  std::uint64_t written() const { return written_.load(std::memory_order_acquire); }
  std::uint64_t failures() const { return failures_.load(std::memory_order_relaxed); }
  std::uint64_t peak_bytes() const { return peak_bytes_.load(std::memory_order_relaxed); }

 private:
  void run() {
    // The mutex is for stopping alone: only stop() takes it besides this thread.
    std::unique_lock<std::mutex> lock(mutex_);
    auto due = Clock::now() + period_;
    while (!wake_.wait_until(lock, due, [this] { return stopping_; })) {
      sample();
      due += period_;
      // Late: samples that were due meanwhile are skipped, not made up for.
      due = std::max(due, Clock::now());
    }
  }

  // Called by one thread at a time: by start() before the thread is, by the thread, by stop() after it.
  void sample() {
    std::uint64_t bytes = 0;
    if (!source_->read(bytes)) {
      failures_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    const std::uint64_t number = written_.load(std::memory_order_relaxed);
    Slot& slot = ring_[number % ring_.size()];
    slot.version.store(2 * number + 1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    slot.time_ns.store(nanoseconds(Clock::now()), std::memory_order_relaxed);
    slot.bytes.store(bytes, std::memory_order_relaxed);
    slot.version.store(2 * number + 2, std::memory_order_release);
    written_.store(number + 1, std::memory_order_release);
    if (bytes > peak_bytes_.load(std::memory_order_relaxed)) peak_bytes_.store(bytes, std::memory_order_relaxed);
  }

  std::unique_ptr<Source> source_;
  std::chrono::nanoseconds period_;
  std::vector<Slot> ring_;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::atomic<std::uint64_t> written_{0}, failures_{0}, peak_bytes_{0};
};

}  // namespace

extern "C" {

struct msgdas_sampler_counts {
  std::uint64_t written, failures, peak_bytes;
};

// Raised with every change of this interface; sampler.py falls back where it finds another.
int msgdas_sampler_version() { return 1; }

// A sampler of a GPU, or of this process where `uuid` is null. Null and a message where that cannot be.
void* msgdas_sampler_open(const char* uuid, double rate_hz, std::uint64_t capacity, char* error, std::size_t size) {
  try {
    std::unique_ptr<Source> source;
    if (uuid)
      source = std::make_unique<GpuMemory>(uuid);
    else
      source = std::make_unique<ProcessMemory>();
    return new Sampler(std::move(source), rate_hz, capacity);
  } catch (const std::exception& exception) {
    std::snprintf(error, size, "%s", exception.what());
    return nullptr;
  }
}

int msgdas_sampler_start(void* sampler) {
  try {
    static_cast<Sampler*>(sampler)->start();
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

void msgdas_sampler_stop(void* sampler) { static_cast<Sampler*>(sampler)->stop(); }
void msgdas_sampler_close(void* sampler) { delete static_cast<Sampler*>(sampler); }

// Copies at most `room` samples, from number `*from` or the oldest there is, and moves `*from` behind them.
std::uint64_t msgdas_sampler_copy(void* sampler, std::uint64_t* from, std::uint64_t room, std::uint64_t* times_ns,
                                  std::uint64_t* bytes) {
  return static_cast<const Sampler*>(sampler)->copy(*from, room, times_ns, bytes);
}

void msgdas_sampler_count(void* sampler, msgdas_sampler_counts* counts) {
  const auto* self = static_cast<const Sampler*>(sampler);
  *counts = {self->written(), self->failures(), self->peak_bytes()};
}

}  // extern "C"
