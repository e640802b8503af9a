/* A CUDA driver without a device: it keeps the programs and launches that it is given and runs none.

   Holds what Triton's driver and launchers call, and answers as a device of compute capability 8.0 or
   9.0 would: launches beyond the limits of CUDA are refused with CUDA_ERROR_INVALID_VALUE. */

#include <elf.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

typedef struct {
  char *image; /* a copy of the module */
  size_t size;
  char name[256];
} Function;

typedef struct {
  int32_t function;
  uint32_t grid[3], threads, shared;
} Launch;

static Function functions[4096];
static int32_t function_count;
static Launch *launches;
static size_t launch_count, launch_capacity;
static unsigned shared_limit = 232448;

/* ------------------------------------------------------------- what the tests ask and set */

void fake_shared_limit(unsigned bytes) { shared_limit = bytes; }
size_t fake_launch_count(void) { return launch_count; }
const Launch *fake_launches(void) { return launches; }
void fake_forget_launches(void) { launch_count = 0; }
const Function *fake_function(int32_t index) { return &functions[index]; }

/* ------------------------------------------------------------- the driver */

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_INVALID_VALUE ? "invalid argument" : "error of the fake driver";
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = (int)shared_limit; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = (int)shared_limit + 1024; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  default: *value = 1; /* clocks and the width of the bus */
  }
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { return cuCtxGetCurrent(context); }

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
  *value = 1 << 20;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  const Elf64_Ehdr *header = image;
  if (memcmp(header->e_ident, ELFMAG, SELFMAG))
    return CUDA_ERROR_INVALID_IMAGE;
  if (function_count == sizeof functions / sizeof *functions)
    return CUDA_ERROR_OUT_OF_MEMORY;
  size_t sections = header->e_shoff + (size_t)header->e_shentsize * header->e_shnum;
  size_t segments = header->e_phoff + (size_t)header->e_phentsize * header->e_phnum;
  Function *function = &functions[function_count++];
  function->size = sections > segments ? sections : segments;
  function->image = malloc(function->size);
  memcpy(function->image, image, function->size);
  *module = (CUmodule)(intptr_t)function_count;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  /* Modules of Triton hold one kernel: it has their number. */
  strncpy(functions[(intptr_t)module - 1].name, name, sizeof functions->name - 1);
  *function = (CUfunction)module;
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)data = pointer;
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters,
                          void **extra) {
  Launch each = {(int32_t)(intptr_t)function - 1,
                 {config->gridDimX, config->gridDimY, config->gridDimZ},
                 config->blockDimX,
                 config->sharedMemBytes};
  if (each.grid[0] < 1 || each.grid[0] > 2147483647u || each.grid[1] < 1 || each.grid[1] > 65535 ||
      each.grid[2] < 1 || each.grid[2] > 65535 || each.threads > 1024 || each.shared > shared_limit)
    return CUDA_ERROR_INVALID_VALUE;
  if (launch_count == launch_capacity) {
    launch_capacity = 2 * launch_capacity + 1024;
    launches = realloc(launches, launch_capacity * sizeof *launches);
  }
  launches[launch_count++] = each;
  return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction function, const CUlaunchConfig *config) {
  return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *size, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                CUtensorMapFloatOOBfill fill) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
