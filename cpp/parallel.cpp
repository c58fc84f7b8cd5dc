#include "parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace halocast {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

struct Job {
  void (*run)(const void*, std::int64_t);
  const void* context;
  std::int64_t chunks;
  std::atomic<std::int64_t> next{0};

  void work() {
    for (std::int64_t chunk = next++; chunk < chunks; chunk = next++) run(context, chunk);
  }
};

// Threads that wait for one job at a time. Never destroyed: its threads may outlive static destructors.
class Pool {
 public:
  void run(Job& job, int threads) {
    std::lock_guard<std::mutex> one_job_at_a_time(entry_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_) < threads - 1) {
        std::thread(&Pool::serve, this, workers_).detach();
        ++workers_;
      }
      job_ = &job;
      wanted_ = static_cast<unsigned>(threads - 1);
      busy_ = wanted_;
      ++generation_;
    }
    start_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void serve(unsigned number) {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      start_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (number >= wanted_) continue;
      Job* job = job_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex entry_;
  std::mutex mutex_;
  std::condition_variable start_;
  std::condition_variable done_;
  Job* job_ = nullptr;
  std::uint64_t generation_ = 0;
  unsigned workers_ = 0;
  unsigned wanted_ = 0;
  unsigned busy_ = 0;
};

std::atomic<GompParallel> gomp{nullptr};
std::atomic<Pool*> pool{nullptr};

// Threads do not survive a fork, and libgomp hangs in the child of a process that used it: the child starts a pool of
// its own.
void after_fork() {
  gomp = nullptr;
  pool = nullptr;
}

void watch_forks() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, after_fork); });
}

Pool& own_pool() {
  watch_forks();
  Pool* current = pool;
  if (current == nullptr) {
    Pool* fresh = new Pool;
    if (pool.compare_exchange_strong(current, fresh))
      current = fresh;
    else
      delete fresh;
  }
  return *current;
}

// Work started from within a chunk runs on the thread that is there.
thread_local bool inside = false;

struct Inside {
  Inside() { inside = true; }
  ~Inside() { inside = false; }
};

}  // namespace

void attach_openmp(void* gomp_parallel) {
  watch_forks();
  gomp = reinterpret_cast<GompParallel>(gomp_parallel);
}

void parallel_chunks(std::int64_t chunks, int threads, void (*run)(const void*, std::int64_t), const void* context) {
  Job job{run, context, chunks};
  threads = static_cast<int>(std::min<std::int64_t>(threads, chunks));
  if (threads <= 1 || inside) {
    job.work();
    return;
  }
  const Inside guard;
  if (GompParallel parallel = gomp)
    parallel([](void* data) { static_cast<Job*>(data)->work(); }, &job, static_cast<unsigned>(threads), 0);
  else
    own_pool().run(job, threads);
}

}  // namespace halocast
