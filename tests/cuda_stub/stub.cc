// Stands in for the CUDA 13 runtime, cuBLAS and the driver under ONNX Runtime's CUDA provider, on a machine without a
// GPU. Computes nothing: kernels and GEMMs are logged and left out; device memory is host memory that is counted.
// Functions that need no answer of their own are not here, build.sh generates them.
#include <cuda_runtime_api.h>
#include <cxxabi.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>

#define STUB extern "C"

// ---- Settings ----

static void refuse(const char* variable, const char* value) {
  fprintf(stderr, "CUDA stub: %s=%s cannot be used\n", variable, value);
  exit(2);
}

struct Chip {
  int sm, processors, threads_per_processor, blocks_per_processor, shared_kb, shared_kb_per_block, l2_mb;
};
static const Chip chips[] = {
    {75, 40, 1024, 16, 64, 64, 4},        // T4
    {80, 108, 2048, 32, 164, 163, 40},    // A100
    {86, 72, 1536, 16, 100, 99, 6},       // A10
    {89, 58, 1536, 24, 100, 99, 48},      // L4
    {90, 132, 2048, 32, 228, 227, 50},    // H100, H200
    {100, 148, 2048, 32, 228, 227, 126},  // B200
    {120, 170, 1536, 24, 100, 99, 96},    // RTX 5090
};

// FAKECUDA_SM: the compute capability without the dot. One that is not listed takes the figures of the next lower one.
static const Chip& chip() {
  static const Chip chosen = [] {
    const char* text = getenv("FAKECUDA_SM");
    const int sm = text ? atoi(text) : 90;
    if (sm < chips[0].sm) refuse("FAKECUDA_SM", text);
    Chip found = chips[0];
    for (const Chip& c : chips)
      if (c.sm <= sm) found = c;
    found.sm = sm;
    return found;
  }();
  return chosen;
}

// FAKECUDA_MEM: the size of the device memory in bytes, or with K, M or G behind the number (powers of 1024).
static size_t memory_size() {
  static const size_t size = [] {
    const char* text = getenv("FAKECUDA_MEM");
    if (!text) text = "139G";
    char* unit = nullptr;
    const size_t n = strtoull(text, &unit, 10);
    if (!n || !strchr("KMG", *unit) || (*unit && unit[1])) refuse("FAKECUDA_MEM", text);
    return n << (*unit == 'K' ? 10 : *unit == 'M' ? 20 : *unit == 'G' ? 30 : 0);
  }();
  return size;
}

// FAKECUDA_DEVICES: how many devices of this kind there are.
static const int max_devices = 16;
static int number_of_devices() {
  static const int number = [] {
    const char* text = getenv("FAKECUDA_DEVICES");
    const int n = text ? atoi(text) : 1;
    if (n < 1 || n > max_devices) refuse("FAKECUDA_DEVICES", text);
    return n;
  }();
  return number;
}
static thread_local int current_device = 0;

// ---- Log ----

// One lock for all state, so that the order of the log is the order of the calls. State that has a destructor is made
// with new and kept: the provider still calls in when the process ends.
static std::recursive_mutex& mutex() {
  static auto* m = new std::recursive_mutex;
  return *m;
}
#define LOCK std::lock_guard<std::recursive_mutex> guard(mutex())

// Opened for appending: a program may write its own MARK lines between ours.
static FILE* log_file() {
  static FILE* file = [] {
    const char* path = getenv("FAKECUDA_LOG");
    if (!path || !*path) return (FILE*)nullptr;
    FILE* f = fopen(path, "a");
    if (!f) refuse("FAKECUDA_LOG", path);
    fprintf(f, "START pid %d sm %d memory %zu\n", (int)getpid(), chip().sm, memory_size());
    return f;
  }();
  return file;
}

__attribute__((format(printf, 1, 2))) static void note(const char* format, ...) {
  LOCK;
  FILE* f = log_file();
  if (!f) return;
  va_list arguments;
  va_start(arguments, format);
  vfprintf(f, format, arguments);
  va_end(arguments);
  fputc('\n', f);
  fflush(f);
}

// What the generated functions call.
STUB void fakecuda_called(const char* name) { note("CALL %s", name); }

__attribute__((constructor)) static void opened() {
  LOCK;
  if (FILE* f = log_file()) fflush(f);
}

// ---- Memory ----

struct Block {
  size_t size;
  int device;
};
static std::map<char*, Block>& blocks() {
  static auto* m = new std::map<char*, Block>;
  return *m;
}
static std::set<void*>& pinned() {
  static auto* s = new std::set<void*>;
  return *s;
}
static size_t in_use[max_devices];

// The device that an address is on, or -1.
static int device_of(const void* p) {
  LOCK;
  auto after = blocks().upper_bound((char*)p);
  if (after == blocks().begin()) return -1;
  auto block = std::prev(after);
  return (char*)p < block->first + block->second.size ? block->second.device : -1;
}
static bool on_device(const void* p) { return device_of(p) >= 0; }

// Reserves addresses; the host's memory is taken only by pages that are written to (small copies, see below).
static cudaError_t allocate(void** p, size_t n) {
  LOCK;
  *p = nullptr;
  if (n == 0) return cudaSuccess;
  const int device = current_device;
  if (n > memory_size() - in_use[device]) {
    note("OOM %zu in_use %zu device %d", n, in_use[device], device);
    return cudaErrorMemoryAllocation;
  }
  void* m = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) return cudaErrorMemoryAllocation;
  blocks()[(char*)m] = {n, device};
  in_use[device] += n;
  note("MALLOC %zu in_use %zu device %d", n, in_use[device], device);
  *p = m;
  return cudaSuccess;
}

static cudaError_t release(void* p) {
  LOCK;
  auto block = blocks().find((char*)p);
  if (block == blocks().end()) return p ? cudaErrorInvalidValue : cudaSuccess;
  const auto [size, device] = block->second;
  in_use[device] -= size;
  note("FREE %zu in_use %zu device %d", size, in_use[device], device);
  munmap(p, size);
  blocks().erase(block);
  return cudaSuccess;
}

static cudaError_t allocate_pinned(void** p, size_t n) {
  LOCK;
  if (posix_memalign(p, 4096, n ? n : 1)) return cudaErrorMemoryAllocation;
  pinned().insert(*p);
  note("PINNED %zu", n);
  return cudaSuccess;
}

STUB cudaError_t cudaMalloc(void** p, size_t n) { return allocate(p, n); }
STUB cudaError_t cudaMallocFromPoolAsync(void** p, size_t n, cudaMemPool_t, cudaStream_t) { return allocate(p, n); }
STUB cudaError_t cudaFree(void* p) { return release(p); }
STUB cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return release(p); }
STUB cudaError_t cudaMallocHost(void** p, size_t n) { return allocate_pinned(p, n); }
STUB cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) { return allocate_pinned(p, n); }
STUB cudaError_t cudaFreeHost(void* p) {
  LOCK;
  pinned().erase(p);
  free(p);
  return cudaSuccess;
}
STUB cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  LOCK;
  *total = memory_size();
  *available = memory_size() - in_use[current_device];
  return cudaSuccess;
}
STUB cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  LOCK;
  memset(a, 0, sizeof *a);
  a->type = on_device(p)                           ? cudaMemoryTypeDevice
            : pinned().count(const_cast<void*>(p)) ? cudaMemoryTypeHost
                                                   : cudaMemoryTypeUnregistered;
  a->device = std::max(0, device_of(p));
  a->devicePointer = a->hostPointer = const_cast<void*>(p);
  return cudaSuccess;
}
STUB cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  *pool = (cudaMemPool_t)0x30;
  return cudaSuccess;
}
STUB cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  *(uint64_t*)value = 0;
  return cudaSuccess;
}

// ---- Copies ----

// Small copies are carried out, so that shapes and indices that pass through the device arrive; large ones are not,
// so that weights and activations of any size need no memory here.
static const size_t copy_limit = 1 << 20;

static void note_copy(const char* how, const void* to, const void* from, size_t n) {
  if (n) note("COPY %c2%c %zu %s", on_device(from) ? 'D' : 'H', on_device(to) ? 'D' : 'H', n, how);
}
static cudaError_t copy(const char* how, void* to, const void* from, size_t n) {
  note_copy(how, to, from, n);
  if (n < copy_limit) memmove(to, from, n);
  return cudaSuccess;
}
static cudaError_t set(void* p, int value, size_t n) {
  note("MEMSET %zu", n);
  if (n < copy_limit) memset(p, value, n);
  return cudaSuccess;
}

STUB cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) { return copy("sync", to, from, n); }
STUB cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t) {
  return copy("async", to, from, n);
}
STUB cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                   size_t height, cudaMemcpyKind, cudaStream_t) {
  note_copy("2d", to, from, width * height);
  if (width * height < copy_limit)
    for (size_t row = 0; row < height; row++)
      memmove((char*)to + row * to_pitch, (const char*)from + row * from_pitch, width);
  return cudaSuccess;
}
STUB cudaError_t cudaMemcpyFromSymbol(void* to, const void*, size_t n, size_t, cudaMemcpyKind) {
  memset(to, 0, n);
  return cudaSuccess;
}
STUB cudaError_t cudaMemset(void* p, int value, size_t n) { return set(p, value, n); }
STUB cudaError_t cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t) { return set(p, value, n); }

// ---- Device ----

STUB cudaError_t cudaGetDeviceCount(int* n) { return *n = number_of_devices(), cudaSuccess; }
STUB cudaError_t cudaGetDevice(int* n) { return *n = current_device, cudaSuccess; }
STUB cudaError_t cudaSetDevice(int n) {
  if (n < 0 || n >= number_of_devices()) return cudaErrorInvalidDevice;
  current_device = n;
  return cudaSuccess;
}
STUB cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
STUB cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }

STUB cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "CUDA stub");
  p->major = chip().sm / 10;
  p->minor = chip().sm % 10;
  p->multiProcessorCount = chip().processors;
  p->totalGlobalMem = memory_size();
  p->l2CacheSize = chip().l2_mb << 20;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = chip().shared_kb_per_block << 10;
  p->sharedMemPerMultiprocessor = chip().shared_kb << 10;
  p->reservedSharedMemPerBlock = 1 << 10;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = chip().threads_per_processor;
  p->maxBlocksPerMultiProcessor = chip().blocks_per_processor;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->unifiedAddressing = p->managedMemory = p->memoryPoolsSupported = 1;
  p->concurrentKernels = p->cooperativeLaunch = 1;
  return cudaSuccess;
}
static int attribute_of(const cudaDeviceProp& p, cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: return p.major;
    case cudaDevAttrComputeCapabilityMinor: return p.minor;
    case cudaDevAttrMultiProcessorCount: return p.multiProcessorCount;
    case cudaDevAttrL2CacheSize: return p.l2CacheSize;
    case cudaDevAttrMaxSharedMemoryPerBlock: return (int)p.sharedMemPerBlock;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return (int)p.sharedMemPerBlockOptin;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return (int)p.sharedMemPerMultiprocessor;
    case cudaDevAttrReservedSharedMemoryPerBlock: return (int)p.reservedSharedMemPerBlock;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return p.regsPerBlock;
    case cudaDevAttrWarpSize: return p.warpSize;
    case cudaDevAttrMaxThreadsPerBlock: return p.maxThreadsPerBlock;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return p.maxThreadsPerMultiProcessor;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return p.maxBlocksPerMultiProcessor;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: return p.maxThreadsDim[0];
    case cudaDevAttrMaxBlockDimZ: return p.maxThreadsDim[2];
    case cudaDevAttrMaxGridDimX: return p.maxGridSize[0];
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return p.maxGridSize[1];
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrCooperativeLaunch: return 1;
    default: return 0;
  }
}
STUB cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, device);
  *value = attribute_of(p, attribute);
  return cudaSuccess;
}

STUB const char* cudaGetErrorName(cudaError_t e) {
  return e == cudaSuccess ? "cudaSuccess" : e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaError";
}
STUB const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaSuccess ? "no error" : e == cudaErrorMemoryAllocation ? "out of memory" : "error of the CUDA stub";
}
STUB cudaError_t cudaGetLastError() { return cudaSuccess; }
STUB cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

static int nothing() { return 0; }  // CUDA_SUCCESS

// Driver functions that are looked up by name: the ones that describe tensors for the copy engine are no-ops.
STUB cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                  cudaDriverEntryPointQueryResult* result) {
  note("ENTRY %s", name);
  const bool known = !strncmp(name, "cuTensorMap", 11);
  *function = known ? (void*)nothing : nullptr;
  if (result) *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return known ? cudaSuccess : cudaErrorNotSupported;
}

// ---- Streams, events, graphs: everything has already happened ----

static bool capturing = false;

STUB cudaError_t cudaStreamCreate(cudaStream_t* s) { return *s = (cudaStream_t)0x10, cudaSuccess; }
STUB cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return *s = (cudaStream_t)0x10, cudaSuccess; }
STUB cudaError_t cudaEventCreate(cudaEvent_t* e) { return *e = (cudaEvent_t)0x20, cudaSuccess; }
STUB cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return *e = (cudaEvent_t)0x20, cudaSuccess; }
STUB cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { return *ms = 1, cudaSuccess; }
STUB cudaError_t cudaStreamSynchronize(cudaStream_t) { return note("SYNC stream"), cudaSuccess; }
STUB cudaError_t cudaDeviceSynchronize() { return note("SYNC device"), cudaSuccess; }
STUB cudaError_t cudaEventSynchronize(cudaEvent_t) { return note("SYNC event"), cudaSuccess; }
STUB cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t f, void* data) { return f(data), cudaSuccess; }

STUB cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
STUB cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  capturing = true;
  note("GRAPH begin");
  return cudaSuccess;
}
STUB cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  capturing = false;
  note("GRAPH end");
  *graph = (cudaGraph_t)0x50;
  return cudaSuccess;
}
STUB cudaError_t cudaGraphInstantiate(cudaGraphExec_t* graph, cudaGraph_t, unsigned long long) {
  *graph = (cudaGraphExec_t)0x60;
  return cudaSuccess;
}
STUB cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return note("GRAPH launch"), cudaSuccess; }

// ---- Kernels ----

static std::map<const void*, std::string>& kernel_names() {
  static auto* m = new std::map<const void*, std::string>;
  return *m;
}

static cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared) {
  LOCK;
  if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z) note("BADLAUNCH empty grid or block");
  if (grid.y > 65535 || grid.z > 65535 || grid.x > 2147483647) note("BADLAUNCH grid too large");
  if (block.z > 64 || (size_t)block.x * block.y * block.z > 1024) note("BADLAUNCH block too large");
  if (shared > (size_t)chip().shared_kb_per_block << 10) note("BADLAUNCH too much shared memory");
  auto found = kernel_names().find(kernel);
  const char* name = found == kernel_names().end() ? "?" : found->second.c_str();
  int status;
  char* readable = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  note("KERNEL grid %u,%u,%u block %u,%u,%u shared %zu %s", grid.x, grid.y, grid.z, block.x, block.y, block.z, shared,
       readable ? readable : name);
  free(readable);
  return cudaSuccess;
}

STUB cudaError_t cudaLaunchKernel(const void* f, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t) {
  return launch(f, grid, block, shared);
}
STUB cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 grid, dim3 block, void**, size_t shared,
                                             cudaStream_t) {
  return launch(f, grid, block, shared);
}
STUB cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void**) {
  return launch(f, c->gridDim, c->blockDim, c->dynamicSmemBytes);
}

// What the compiler emits for kernel<<<...>>>(): push the configuration, pop it in the kernel's stub, launch.
static thread_local struct {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} pushed;
STUB unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
STUB cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *(cudaStream_t*)stream = pushed.stream;
  return cudaSuccess;
}
STUB cudaError_t __cudaGetKernel(const void** kernel, const void* f) { return *kernel = f, cudaSuccess; }
STUB cudaError_t __cudaLaunchKernel(const void* f, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t) {
  return launch(f, grid, block, shared);
}

// Every kernel announces itself when the provider is loaded: host address and mangled name.
STUB void** __cudaRegisterFatBinary(void*) {
  static void* handle[4];
  return handle;
}
STUB void __cudaRegisterFatBinaryEnd(void**) {}
STUB void __cudaUnregisterFatBinary(void**) {}
STUB void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
STUB void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*,
                                 int*) {
  LOCK;
  kernel_names()[host] = name;
}
STUB cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void*, cudaJitOption*, void**, unsigned,
                                     cudaLibraryOption*, void**, unsigned) {
  *library = (cudaLibrary_t)0x70;
  return cudaSuccess;
}
STUB cudaError_t cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t, const char* name) {
  LOCK;
  auto* key = new std::string(name);
  kernel_names()[key] = *key;
  *kernel = (cudaKernel_t)key;
  return cudaSuccess;
}

STUB cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->binaryVersion = a->ptxVersion = chip().sm;
  return cudaSuccess;
}
// By threads, blocks and dynamic shared memory; the kernel's registers are not known.
STUB cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int threads, size_t shared,
                                                                        unsigned) {
  *n = std::min(chip().threads_per_processor / std::max(threads, 1), chip().blocks_per_processor);
  *n = std::min(*n, int(((size_t)chip().shared_kb << 10) / (shared + 1024)));
  return cudaSuccess;
}

// ---- cuBLAS: matrices are column-major, so a row-major product of M x K by K x N appears with m = N and n = M ----

static std::string type_name(int type) {
  switch (type) {
    case 0: return "f32";
    case 1: return "f64";
    case 2: return "f16";
    case 3: return "i8";
    case 10: return "i32";
    case 14: return "bf16";
    case 28: return "f8e4m3";
    case 29: return "f8e5m2";
    default: return "type" + std::to_string(type);
  }
}
static std::string compute_name(int type) {
  switch (type) {
    case 64: return "f16";
    case 68: return "f32";
    case 69: return "f32-pedantic";
    case 70: return "f64";
    case 72: return "i32";
    case 74: return "f32-fast-f16";
    case 75: return "f32-fast-bf16";
    case 77: return "f32-fast-tf32";
    default: return "compute" + std::to_string(type);
  }
}
// A cuBLAS handle. Math mode 3 lets products of floats use TF32.
struct Blas {
  int math_mode;
};

static int gemm(const Blas* blas, const char* call, int ta, int tb, long m, long n, long k, int batch, int a, int b,
                int c, int compute) {
  if (blas && blas->math_mode == 3 && a == 0 && b == 0 && compute == 68) compute = 77;
  note("GEMM %s %c,%c m %ld n %ld k %ld batch %d types %s,%s,%s compute %s", call, ta ? 'T' : 'N', tb ? 'T' : 'N', m, n,
       k, batch, type_name(a).c_str(), type_name(b).c_str(), type_name(c).c_str(), compute_name(compute).c_str());
  return 0;
}

STUB int cublasCreate_v2(Blas** blas) { return *blas = new Blas{0}, 0; }
STUB int cublasDestroy_v2(Blas* blas) { return delete blas, 0; }
STUB int cublasGetMathMode(Blas* blas, int* mode) { return *mode = blas->math_mode, 0; }
STUB int cublasSetMathMode(Blas* blas, int mode) { return blas->math_mode = mode, note("MATH %d", mode), 0; }
STUB const char* cublasGetStatusName(int) { return "cublasStatus"; }
STUB const char* cublasGetStatusString(int) { return "status of the CUDA stub"; }

STUB int cublasGemmEx(Blas* blas, int ta, int tb, int m, int n, int k, const void*, const void*, int a, int,
                      const void*, int b, int, const void*, void*, int c, int, int compute, int) {
  return gemm(blas, "cublasGemmEx", ta, tb, m, n, k, 1, a, b, c, compute);
}
STUB int cublasGemmStridedBatchedEx(Blas* blas, int ta, int tb, int m, int n, int k, const void*, const void*, int a,
                                    int, long long, const void*, int b, int, long long, const void*, void*, int c, int,
                                    long long, int batch, int compute, int) {
  return gemm(blas, "cublasGemmStridedBatchedEx", ta, tb, m, n, k, batch, a, b, c, compute);
}
STUB int cublasGemmBatchedEx(Blas* blas, int ta, int tb, int m, int n, int k, const void*, const void* const*, int a,
                             int, const void* const*, int b, int, const void*, void* const*, int c, int, int batch,
                             int compute, int) {
  return gemm(blas, "cublasGemmBatchedEx", ta, tb, m, n, k, batch, a, b, c, compute);
}
#define PLAIN_GEMM(L, type, compute)                                                                                \
  STUB int cublas##L##gemm_v2(Blas* blas, int ta, int tb, int m, int n, int k, const void*, const void*, int,       \
                              const void*, int, const void*, void*, int) {                                          \
    return gemm(blas, "cublas" #L "gemm", ta, tb, m, n, k, 1, type, type, type, compute);                           \
  }                                                                                                                 \
  STUB int cublas##L##gemmStridedBatched(Blas* blas, int ta, int tb, int m, int n, int k, const void*, const void*, \
                                         int, long long, const void*, int, long long, const void*, void*, int,      \
                                         long long, int batch) {                                                    \
    return gemm(blas, "cublas" #L "gemmStridedBatched", ta, tb, m, n, k, batch, type, type, type, compute);         \
  }                                                                                                                 \
  STUB int cublas##L##gemmBatched(Blas* blas, int ta, int tb, int m, int n, int k, const void*, const void* const*, \
                                  int, const void* const*, int, const void*, void* const*, int, int batch) {        \
    return gemm(blas, "cublas" #L "gemmBatched", ta, tb, m, n, k, batch, type, type, type, compute);                \
  }
PLAIN_GEMM(S, 0, 68)
PLAIN_GEMM(D, 1, 70)

// ---- cuBLASLt: sizes and transposes come from descriptors, which are kept ----

struct Layout {
  int type;
  uint64_t rows, columns;
  int batch;
};
struct Product {
  int compute;
  int transposed[2];
};

STUB int cublasLtCreate(void** handle) { return *handle = (void*)0x41, 0; }
STUB int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t) {
  *layout = new Layout{type, rows, columns, 1};
  return 0;
}
STUB int cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t) {
  if (attribute == 5) layout->batch = *(const int*)value;  // CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT
  return 0;
}
STUB int cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, 0; }
STUB int cublasLtMatmulDescCreate(Product** product, int compute, int) {
  *product = new Product{compute, {0, 0}};
  return 0;
}
STUB int cublasLtMatmulDescSetAttribute(Product* product, int attribute, const void* value, size_t) {
  if (attribute == 3 || attribute == 4) product->transposed[attribute - 3] = *(const int*)value;  // TRANSA, TRANSB
  return 0;
}
STUB int cublasLtMatmulDescDestroy(Product* product) { return delete product, 0; }
STUB int cublasLtMatmulPreferenceCreate(void** preference) { return *preference = (void*)0x43, 0; }
STUB int cublasLtMatrixTransformDescCreate(void** transform, int) { return *transform = (void*)0x44, 0; }
STUB int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* results, int* n) {
  memset(results, 0, 96);  // one cublasLtMatmulHeuristicResult_t: no workspace, success
  *n = 1;
  return 0;
}
STUB int cublasLtMatmul(void*, Product* p, const void*, const void*, Layout* a, const void*, Layout* b, const void*,
                        const void*, Layout*, void*, Layout* d, const void*, void*, size_t, cudaStream_t) {
  return gemm(nullptr, "cublasLtMatmul", p->transposed[0], p->transposed[1], d->rows, d->columns,
              p->transposed[0] ? a->rows : a->columns, d->batch, a->type, b->type, d->type, p->compute);
}
