/* A libnvidia-ml.so.1 for tests: the part of NVML that profiles/ asks, answered from a script.
 *
 * FAKE_NVML_SCRIPT names a text file, one statement a line; DEVICE counts from 0 in the order of `gpu` lines:
 *   init CODE                           init fails with this code
 *   driver VERSION
 *   gpu UUID TOTAL MAJOR.MINOR NAME...
 *   at DEVICE SECONDS USED              bytes used from so many seconds after the first init on
 *   proc DEVICE PID USED                USED may be -, for "not available"
 *   mig DEVICE                          MIG is on
 *   instance DEVICE SLOT UUID TOTAL USED GI CI NAME...
 *   fail DEVICE CODE                    the device's memory cannot be read
 *   state DEVICE SM_MHZ MEMORY_MHZ CELSIUS MILLIWATTS REASONS
 *                                       REASONS as the bits, in hex, of NVML's clocks event reasons; without this line of a
 *                                       device the driver tells none of it
 *   live PATH                           a file of uint64 per device: bytes used now, instead of `at` lines
 *
 * Struct layouts and codes are those of nvml.h 13.
 */
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MAX_DEVICES = 8, MAX_INSTANCES = 7, MAX_PROCESSES = 8, MAX_POINTS = 4096 };

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { double seconds; unsigned long long used; } point_t;

typedef struct device {
  char name[96], uuid[96];
  unsigned long long total, used;
  int major, minor, mig, fault, is_instance, exists;
  unsigned gi, ci;
  unsigned told, sm_mhz, memory_mhz, celsius, milliwatts;
  unsigned long long reasons;
  int points, processes;
  point_t timeline[MAX_POINTS];
  process_t process[MAX_PROCESSES];
} device_t;

static device_t devices[MAX_DEVICES];
static device_t instances[MAX_DEVICES][MAX_INSTANCES];
static unsigned device_count;
static int references, init_code, loaded;
static char driver_version[80] = "580.00.00";
static double started;
static _Atomic uint64_t *live;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void read_line(const char *line) {
  char word[32], rest[512];
  unsigned d, slot;
  unsigned long long bytes;
  double seconds;
  if (sscanf(line, "%31s %511[^\n]", word, rest) < 1 || word[0] == '#') return;
  if (!strcmp(word, "init")) init_code = atoi(rest);
  else if (!strcmp(word, "driver")) snprintf(driver_version, sizeof driver_version, "%.79s", rest);
  else if (!strcmp(word, "gpu") && device_count < MAX_DEVICES) {
    device_t *device = &devices[device_count++];
    sscanf(rest, "%95s %llu %d.%d %95[^\n]", device->uuid, &device->total, &device->major, &device->minor, device->name);
    device->exists = 1;
  } else if (!strcmp(word, "at") && sscanf(rest, "%u %lf %llu", &d, &seconds, &bytes) == 3) {
    device_t *device = &devices[d];
    if (device->points < MAX_POINTS) device->timeline[device->points++] = (point_t){seconds, bytes};
  } else if (!strcmp(word, "proc")) {
    process_t process = {0, (unsigned long long)-1, -1, -1};
    sscanf(rest, "%u %u %llu", &d, &process.pid, &process.used);
    devices[d].process[devices[d].processes++] = process;
  } else if (!strcmp(word, "mig")) devices[atoi(rest)].mig = 1;
  else if (!strcmp(word, "instance") && sscanf(rest, "%u %u", &d, &slot) == 2) {
    device_t *device = &instances[d][slot];
    sscanf(rest, "%*u %*u %95s %llu %llu %u %u %95[^\n]", device->uuid, &device->total, &device->used, &device->gi,
           &device->ci, device->name);
    device->exists = device->is_instance = 1;
  } else if (!strcmp(word, "fail")) {
    int code;
    if (sscanf(rest, "%u %d", &d, &code) == 2) devices[d].fault = code;
  } else if (!strcmp(word, "state") && sscanf(rest, "%u", &d) == 1) {
    device_t *device = &devices[d];
    device->told = sscanf(rest, "%*u %u %u %u %u %llx", &device->sm_mhz, &device->memory_mhz, &device->celsius,
                          &device->milliwatts, &device->reasons) == 5;
  } else if (!strcmp(word, "live")) {
    int file = open(rest, O_RDONLY);
    void *map = file < 0 ? MAP_FAILED : mmap(NULL, MAX_DEVICES * 8, PROT_READ, MAP_SHARED, file, 0);
    if (map != MAP_FAILED) live = map;
    if (file >= 0) close(file);
  }
}

static void load(void) {
  const char *path = getenv("FAKE_NVML_SCRIPT");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[600];
  loaded = 1;
  started = now();
  if (!file) { init_code = 9; return; }
  while (fgets(line, sizeof line, file)) read_line(line);
  fclose(file);
}

static unsigned long long used_now(const device_t *device) {
  if (device->is_instance) return device->used;
  if (live) return atomic_load(&live[device - devices]);
  double seconds = now() - started;
  unsigned long long used = 0;
  for (int i = 0; i < device->points && device->timeline[i].seconds <= seconds; i++) used = device->timeline[i].used;
  return used;
}

#define NEEDS_INIT if (!references) return UNINITIALIZED

int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  if (!loaded) load();
  if (init_code) return init_code;
  references++;
  return SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { NEEDS_INIT; references--; return SUCCESS; }
const char *nvmlErrorString(int code) { return code ? "an error of the fake" : "Success"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { NEEDS_INIT; snprintf(text, size, "%s", driver_version); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { NEEDS_INIT; *count = device_count; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t **device) {
  NEEDS_INIT;
  if (index >= device_count) return INVALID_ARGUMENT;
  *device = &devices[index];
  return SUCCESS;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, device_t **device) {
  NEEDS_INIT;
  for (unsigned d = 0; d < device_count; d++) {
    if (!strcmp(devices[d].uuid, uuid)) { *device = &devices[d]; return SUCCESS; }
    for (int slot = 0; slot < MAX_INSTANCES; slot++)
      if (instances[d][slot].exists && !strcmp(instances[d][slot].uuid, uuid)) { *device = &instances[d][slot]; return SUCCESS; }
  }
  return NOT_FOUND;
}
int nvmlDeviceGetName(const device_t *device, char *text, unsigned size) { NEEDS_INIT; snprintf(text, size, "%s", device->name); return SUCCESS; }
int nvmlDeviceGetUUID(const device_t *device, char *text, unsigned size) { NEEDS_INIT; snprintf(text, size, "%s", device->uuid); return SUCCESS; }
int nvmlDeviceGetMemoryInfo(const device_t *device, memory_t *memory) {
  NEEDS_INIT;
  if (device->fault) return device->fault;
  memory->total = device->total;
  memory->used = used_now(device);
  memory->free = device->total - memory->used;
  return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(const device_t *device, unsigned *count, process_t *out) {
  NEEDS_INIT;
  unsigned room = *count;
  *count = (unsigned)device->processes;
  if (room < *count) return INSUFFICIENT_SIZE;
  memcpy(out, device->process, *count * sizeof *out);
  return SUCCESS;
}
int nvmlDeviceGetMigMode(const device_t *device, unsigned *current, unsigned *pending) {
  NEEDS_INIT;
  if (device->major < 8) return NOT_SUPPORTED;
  *current = *pending = (unsigned)device->mig;
  return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(const device_t *device, unsigned *count) { NEEDS_INIT; *count = device->mig ? MAX_INSTANCES : 0; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(const device_t *parent, unsigned slot, device_t **device) {
  NEEDS_INIT;
  if (slot >= MAX_INSTANCES || !instances[parent - devices][slot].exists) return NOT_FOUND;
  *device = &instances[parent - devices][slot];
  return SUCCESS;
}
int nvmlDeviceGetGpuInstanceId(const device_t *device, unsigned *id) { NEEDS_INIT; *id = device->gi; return SUCCESS; }
int nvmlDeviceGetComputeInstanceId(const device_t *device, unsigned *id) { NEEDS_INIT; *id = device->ci; return SUCCESS; }
int nvmlDeviceGetCudaComputeCapability(const device_t *device, int *major, int *minor) {
  NEEDS_INIT;
  if (device->is_instance || !device->major) return NOT_SUPPORTED;
  *major = device->major;
  *minor = device->minor;
  return SUCCESS;
}
int nvmlDeviceGetClockInfo(const device_t *device, int type, unsigned *mhz) {
  NEEDS_INIT;
  if (!device->told) return NOT_SUPPORTED;
  if (type != 1 && type != 2) return INVALID_ARGUMENT;
  *mhz = type == 1 ? device->sm_mhz : device->memory_mhz;
  return SUCCESS;
}
int nvmlDeviceGetTemperature(const device_t *device, int sensor, unsigned *celsius) {
  NEEDS_INIT;
  if (!device->told) return NOT_SUPPORTED;
  if (sensor) return INVALID_ARGUMENT;
  *celsius = device->celsius;
  return SUCCESS;
}
int nvmlDeviceGetPowerUsage(const device_t *device, unsigned *milliwatts) {
  NEEDS_INIT;
  if (!device->told) return NOT_SUPPORTED;
  *milliwatts = device->milliwatts;
  return SUCCESS;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(const device_t *device, unsigned long long *reasons) {
  NEEDS_INIT;
  if (!device->told) return NOT_SUPPORTED;
  *reasons = device->reasons;
  return SUCCESS;
}
