/* A driver that runs nothing: it takes every pointer for one of a GPU and writes down the grid of each launch. */
#include <stdint.h>

typedef struct {
    unsigned grid_x, grid_y, grid_z, block_x;
} Config;

unsigned launches = 0, programs[1024], threads[1024];

int cuLaunchKernelEx(const Config* config, void* function, void** parameters, void** extra) {
    programs[launches] = config->grid_x * config->grid_y * config->grid_z;
    threads[launches++] = config->block_x;
    return 0;
}

int cuGetErrorString(int error, const char** text) {
    *text = "an error of the driver that runs nothing";
    return 0;
}

int cuPointerGetAttribute(uint64_t* value, int attribute, uint64_t pointer) {
    *value = pointer;
    return 0;
}

int cuDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}

int cuStreamIsCapturing(void* stream, int* status) { return *status = 0; }
int cuCtxGetDevice(int* device) { return *device = 0; }

int cuDeviceGet(int* device, int ordinal) {
    *device = 0;
    return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
    *value = 1 << 16;
    return 0;
}

static int give(void** handle) {
    *handle = (void*)1;
    return 0;
}

int cuCtxGetCurrent(void** context) { return give(context); }
int cuDevicePrimaryCtxRetain(void** context, int device) { return give(context); }
int cuModuleLoadData(void** module, const void* image) { return give(module); }
int cuModuleGetFunction(void** function, void* module, const char* name) { return give(function); }
int cuModuleUnload(void* module) { return 0; }
int cuCtxSetCurrent(void* context) { return 0; }

int cuFuncGetAttribute(int* value, int attribute, void* function) {
    *value = attribute == 0 ? 1024 : 0; /* the most threads of a block, and nothing spilled or shared */
    return 0;
}

int cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void* function, int config) { return 0; }
int cuCtxGetLimit(uint64_t* value, int limit) { return *value = 0; }
int cuCtxSetLimit(int limit, uint64_t value) { return 0; }
int cuOccupancyMaxActiveClusters(int* count, void* function, void* config) { return *count = 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
