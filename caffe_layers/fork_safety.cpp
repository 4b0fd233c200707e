#include <omp.h>
#include <pthread.h>

namespace caffe {

namespace {

// A child has none of its parent's threads, but libgomp would wait for them.
// Without them at the time of the fork, parent and child both start new ones.
void StopThreads() { omp_pause_resource_all(omp_pause_soft); }

const int g_registered = pthread_atfork(StopThreads, NULL, NULL);

}  // namespace

}  // namespace caffe
