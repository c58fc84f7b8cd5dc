// Epochs of a training program on a virtual clock, event by event, for ranks that each have a device of their own.
//
// The same machine as halocast.simulator.engine, which is the reference: computing, posting, transport threads, token
// buckets, max-min fair flows, ring all-reduces. Where few flows are in the air both compute the same. Where many are, their
// rates are computed once for all that start or end within a window.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace halocast {

using Index = std::int64_t;

enum class Meeting : Index { exchange, reduce, wait, end };

// What all ranks do, as tables. A step is what a rank does up to and with one operation that meets other ranks, the last one up
// to the epoch's end. A slot is what a flight still misses from one peer (of an all-reduce: from all).
struct Programs {
  Index ranks, messages, connections, reductions, slots;
  const Index* first_step;      // [ranks + 1]
  const double* compute;        // [steps] seconds before its operation
  const Index* meeting;         // [steps] a Meeting
  const Index* reduction;       // [steps] which all-reduce it starts
  const Index* first_post;      // [steps + 1] into posts
  const Index* posts;           // the messages a step starts at this end, in the order of posting
  const Index* first_slot;      // [steps] slots that a start opens or a wait waits for
  const Index* last_slot;       // [steps]
  const Index* parts;           // [slots] messages that fill it
  const Index* slot_rank;       // [slots]
  const Index* slot_step;       // [slots] the start that opens it
  const Index* exchange;        // [messages] which of the epoch's exchanges it is of
  const Index* connection;      // [messages] the first `ranks` connections are the ring's, by target
  const Index* sending_slot;    // [messages]
  const Index* receiving_slot;  // [messages]
  const Index* source;          // [connections]
  const Index* target;          // [connections]
  const double* bytes;          // [messages]
  const double* bucket;         // [reductions] bytes
};

// Seconds, bytes, bytes per second.
struct Costs {
  double efficiency, reduce_efficiency, send, receive, per_byte, send_buffer, reduce_step, post, wake, first_rank;
};

struct Network {
  Index resources, hops;
  double queue_seconds;
  const double* capacity;  // [resources]
  const double* burst;     // [resources]
  const Index* paths;      // [connections, hops]
  const double* latency;   // [connections]
};

// How coarsely rates are computed.
struct Precision {
  double window;     // share of the time that all flows need to drain: changes within it are solved for together
  Index exact_flows; // up to so many flows there is no window
  double together;   // seconds: flows that end so close to each other end together
  Index exact_ring;  // ranks up to which each message of a ring looks at the network at its own time
};

struct Times {
  double* reached;  // [steps] when a rank came to its operation
  double* left;     // [steps] when it went on
  double* landed;   // [messages]
  double* done;     // [steps] when all of a flight was through; -inf: it never was
  double* begin;    // [ranks] in: of the first epoch; out: of the last
  double* end;      // [ranks]
  double* samples;  // [epochs] rank 0's epoch times
};

class Epochs {
 public:
  Epochs(const Programs& programs, const Costs& costs, const Network& network, const Precision& precision, Times times)
      : p(programs), costs(costs), network(network), precision(precision), times(times) {
    const auto infinity = std::numeric_limits<double>::infinity();
    ranks.resize(p.ranks);
    threads.resize(p.ranks);
    missing.assign(p.slots, 0);
    posted.assign(p.messages, false);
    next_job.assign(2 * p.messages, none);
    place.assign(p.messages, 0);
    end_event.assign(p.messages, 0);
    turn.assign(p.messages, 0);
    followers.resize(p.messages);
    for (Index message = 0; message < p.messages; ++message) exchanges = std::max(exchanges, p.exchange[message] + 1);
    on_ring.resize(p.ranks);
    rings.resize(p.reductions);
    credit.assign(network.burst, network.burst + network.resources);
    credit_since.assign(network.resources, 0.0);
    crossing.assign(network.resources, 0);
    room.assign(network.resources, 0.0);
    open.assign(network.resources, 0);
    members_end.assign(network.resources, 0);
    weight.assign(network.resources, 0.0);
    moment.assign(network.resources, 0.0);
    first_hop.reserve(p.connections + 1);
    for (Index c = 0; c < p.connections; ++c) {
      first_hop.push_back(static_cast<Index>(hops.size()));
      double least = infinity;
      for (Index hop = 0; hop < network.hops; ++hop) {
        const Index resource = network.paths[c * network.hops + hop];
        if (std::isinf(network.capacity[resource])) continue;
        hops.push_back(resource);
        least = std::min(least, network.capacity[resource]);
      }
      narrowest.push_back(least);
    }
    first_hop.push_back(static_cast<Index>(hops.size()));
  }

  void run(Index count) {
    epochs = count;
    Index unfinished = p.ranks;
    for (Index rank = 0; rank < p.ranks; ++rank) at(times.begin[rank], Kind::epoch, rank);
    while (unfinished > 0 && !events.empty()) {
      const Event event = events.pop();
      now = event.time;
      switch (static_cast<Kind>(event.kind)) {
        case Kind::epoch:
          times.begin[event.index] = now;
          ranks[event.index].step = p.first_step[event.index];
          compute(event.index);
          break;
        case Kind::reached: unfinished -= reach(event.index); break;
        case Kind::posted: post(event.index); break;
        case Kind::thread: serve(event.index); break;
        case Kind::released: release(event.index); break;
        case Kind::drained:
          if (end_event[event.index] == event.order) end_flow(event.index);
          break;
        case Kind::solve: solve(); break;
        case Kind::ring: take_step(event.index); break;
        case Kind::small: send_small(event.index); break;
        case Kind::handed: hand_on(event.index); break;
        case Kind::reduced: complete(event.index); break;
      }
    }
  }

 private:
  static constexpr Index none = -1;
  static constexpr int max_hops = 6;

  enum class Kind : std::uint64_t { epoch, reached, posted, thread, released, drained, solve, ring, small, handed, reduced };

  // Of events at one time the one planned first comes first. Small, because sorting them is what most time goes into.
  struct Event {
    double time;
    std::uint64_t order : 32, kind : 4, index : 28;
    bool before(const Event& other) const { return time != other.time ? time < other.time : order < other.order; }
  };

  // A heap in which each event has four below it: half as deep as one of two, and the four lie side by side.
  class Queue {
   public:
    bool empty() const { return heap.empty(); }

    void push(const Event& event) {
      std::size_t place = heap.size();
      heap.push_back(event);
      while (place > 0 && event.before(heap[(place - 1) / 4])) {
        heap[place] = heap[(place - 1) / 4];
        place = (place - 1) / 4;
      }
      heap[place] = event;
    }

    Event pop() {
      const Event top = heap.front(), last = heap.back();
      heap.pop_back();
      const std::size_t size = heap.size();
      if (size == 0) return top;
      std::size_t place = 0;
      for (std::size_t child = 1; child < size; child = 4 * place + 1) {
        const std::size_t end = std::min(child + 4, size);
        for (std::size_t each = child + 1; each < end; ++each)
          if (heap[each].before(heap[child])) child = each;
        if (!heap[child].before(last)) break;
        heap[place] = heap[child];
        place = child;
      }
      heap[place] = last;
      return top;
    }

   private:
    std::vector<Event> heap;
  };

  struct Rank {
    Index step = 0, epoch = 0;
    Index waiting = none;  // for which slot
    bool woken = false;
  };

  struct Thread {
    Index head = none, tail = none;
  };

  struct Ring {
    Index posted = 0;
    std::vector<Index> step, slot;
    std::vector<double> handed;  // when each rank has handed on its part of the step
    std::vector<bool> moving;    // whether its next part is on the way to it
  };

  std::uint32_t at(double time, Kind kind, Index index) {
    events.push({time, ++order, static_cast<std::uint64_t>(kind), static_cast<std::uint64_t>(index)});
    return order;
  }

  // -- a rank ---------------------------------------------------------------------------------------------------------

  void compute(Index rank) {
    Rank& self = ranks[rank];
    const double waking = self.woken ? costs.wake : 0.0;
    self.woken = false;
    at(now + p.compute[self.step] + waking, Kind::reached, rank);
  }

  void go_on(Index rank) {
    times.left[ranks[rank].step++] = now;
    compute(rank);
  }

  // Returns whether the rank has come to its last epoch's end.
  bool reach(Index rank) {
    Rank& self = ranks[rank];
    const Index step = self.step;
    times.reached[step] = now;
    switch (static_cast<Meeting>(p.meeting[step])) {
      case Meeting::exchange: {
        const double blocked = costs.post * static_cast<double>(p.first_post[step + 1] - p.first_post[step]);
        if (blocked > 0.0)
          at(now + blocked, Kind::posted, rank);
        else
          post(rank);
        break;
      }
      case Meeting::reduce: reduce(rank); break;
      case Meeting::wait:
        self.waiting = p.first_slot[step];
        wait(rank);
        break;
      case Meeting::end: return end_epoch(rank);
    }
    return false;
  }

  void wait(Index rank) {
    Rank& self = ranks[rank];
    const Index last = p.last_slot[self.step];
    while (self.waiting < last && missing[self.waiting] == 0) ++self.waiting;
    if (self.waiting < last) {
      self.woken = true;
      return;
    }
    self.waiting = none;
    go_on(rank);
  }

  bool end_epoch(Index rank) {
    Rank& self = ranks[rank];
    times.end[rank] = now;
    times.left[self.step] = now;
    if (rank == 0) times.samples[self.epoch] = now - times.begin[0];
    if (++self.epoch == epochs) return true;
    at(now + (rank == 0 ? costs.first_rank : 0.0), Kind::epoch, rank);
    return false;
  }

  void open_slots(Index step) {
    for (Index slot = p.first_slot[step]; slot < p.last_slot[step]; ++slot) missing[slot] = p.parts[slot];
  }

  void complete(Index slot) {
    if (--missing[slot] > 0) return;
    times.done[p.slot_step[slot]] = now;
    if (ranks[p.slot_rank[slot]].waiting == slot) wait(p.slot_rank[slot]);
  }

  // -- messages -------------------------------------------------------------------------------------------------------

  // A message sets off when both of its ends have started the exchange.
  void post(Index rank) {
    const Index step = ranks[rank].step;
    open_slots(step);
    for (Index each = p.first_post[step]; each < p.first_post[step + 1]; ++each) {
      const Index message = p.posts[each];
      posted[message] = !posted[message];
      if (posted[message]) continue;
      turn[message] = ranks[rank].epoch * exchanges + p.exchange[message];
      enqueue(p.source[p.connection[message]], 2 * message);
    }
    go_on(rank);
  }

  double seconds(Index job) const {
    return (job % 2 ? costs.receive : costs.send) + costs.per_byte * p.bytes[job / 2];
  }

  // Jobs of a transport thread: 2 m sends message m, 2 m + 1 receives it.
  void enqueue(Index rank, Index job) {
    if (seconds(job) <= 0.0) return finish(job);
    Thread& thread = threads[rank];
    next_job[job] = none;
    if (thread.head == none) {
      thread.head = thread.tail = job;
      at(now + seconds(job), Kind::thread, rank);
    } else {
      thread.tail = next_job[thread.tail] = job;
    }
  }

  void serve(Index rank) {
    Thread& thread = threads[rank];
    finish(thread.head);
    thread.head = next_job[thread.head];
    if (thread.head != none) at(now + seconds(thread.head), Kind::thread, rank);
  }

  void finish(Index job) {
    const Index message = job / 2;
    if (job % 2) {
      times.landed[message] = now;
      complete(p.receiving_slot[message]);
      return;
    }
    if (p.bytes[message] <= costs.send_buffer) complete(p.sending_slot[message]);
    at(now + network.latency[p.connection[message]], Kind::released, message);
  }

  void arrive(Index message) {
    if (p.bytes[message] > costs.send_buffer) complete(p.sending_slot[message]);
    enqueue(p.target[p.connection[message]], 2 * message + 1);
  }

  // -- flows ----------------------------------------------------------------------------------------------------------

  // A flow's resources are beside it: what visits all flows should read memory in order.
  struct Flow {
    double left, rate, next_rate, needed, started;
    Index message, turn;
    bool is_new;
    std::int32_t hops, resource[max_hops];
  };

  template <class Visit>
  static void each_hop(const Flow& flow, const Visit& visit) {
    for (std::int32_t hop = 0; hop < flow.hops; ++hop) visit(flow.resource[hop]);
  }

  void release(Index message) {
    const Index connection = p.connection[message];
    Flow flow{p.bytes[message] / costs.efficiency, 0.0, 0.0, 0.0, now, message, turn[message], true, 0, {}};
    for (Index hop = first_hop[connection]; hop < first_hop[connection + 1]; ++hop)
      flow.resource[flow.hops++] = static_cast<std::int32_t>(hops[hop]);
    flow.left -= take_credit(flow);
    if (flow.left <= 0.0 || flow.hops == 0) return arrive(message);
    each_hop(flow, [&](Index resource) { ++crossing[resource]; });
    if (connection < p.ranks) on_ring[connection].push_back(message);
    place[message] = static_cast<Index>(flows.size());
    flows.push_back(flow);
    solve_soon();
  }

  // Bytes that pass unshaped: what the emptiest bucket on the way holds. A bucket fills while its link is idle.
  double take_credit(const Flow& flow) {
    double taken = flow.left;
    bool is_shaped = false;
    each_hop(flow, [&](Index resource) {
      if (network.burst[resource] <= 0.0) return;
      if (crossing[resource] == 0) {
        const double earned = (now - credit_since[resource]) * network.capacity[resource];
        credit[resource] = std::min(network.burst[resource], credit[resource] + earned);
      }
      credit_since[resource] = now;
      taken = std::min(taken, credit[resource]);
      is_shaped = true;
    });
    if (!is_shaped) return 0.0;
    each_hop(flow, [&](Index resource) {
      if (network.burst[resource] > 0.0) credit[resource] -= taken;
    });
    return taken;
  }

  void end_flow(Index message) {
    Flow& flow = flows[place[message]];
    each_hop(flow, [&](Index resource) {
      --crossing[resource];
      credit_since[resource] = now;
    });
    if (const Index connection = p.connection[message]; connection < p.ranks) {
      auto& ring = on_ring[connection];
      ring.erase(std::find(ring.begin(), ring.end(), message));
    }
    note_change(flow, flow.rate, now);
    flow.left = ended;
    for (const Index each : followers[message]) at(now + own_time(each), Kind::handed, each);
    followers[message].clear();
    solve_soon();
    arrive(message);
  }

  void solve_soon() {
    if (is_solve_due) return;
    is_solve_due = true;
    at(now + delay, Kind::solve, 0);
  }

  // What a flow that started or ended takes from or leaves to those that share its resources.
  void note_change(const Flow& flow, double bytes_per_second, double time) {
    each_hop(flow, [&](Index resource) {
      if (weight[resource] == 0.0) changed.push_back(resource);
      weight[resource] += bytes_per_second;
      moment[resource] += bytes_per_second * time;
    });
  }

  // Rates are taken to have changed when, on average, the flows on the way started and ended: what is left is then wrong by
  // the second order of the window only.
  void solve() {
    is_solve_due = false;
    flows.erase(std::remove_if(flows.begin(), flows.end(), [](const Flow& flow) { return flow.left == ended; }),
                flows.end());
    const bool is_exact = static_cast<Index>(flows.size()) <= precision.exact_flows;
    share_out(is_exact ? 1e-12 : precision.window * tie_per_window);
    for (const Flow& flow : flows)
      if (flow.is_new) note_change(flow, flow.next_rate, flow.started);
    double bytes = 0.0, bytes_per_second = 0.0, soonest = std::numeric_limits<double>::infinity();
    for (Flow& flow : flows) {
      double turning = flow.started;
      if (!flow.is_new) {
        double total = 0.0, moments = 0.0;
        each_hop(flow, [&](Index resource) { total += weight[resource], moments += moment[resource]; });
        turning = total > 0.0 ? std::min(std::max(moments / total, since), now) : now;
        flow.left -= flow.rate * (turning - since);
      }
      flow.rate = flow.next_rate;
      flow.is_new = false;
      flow.left = std::max(flow.left - flow.rate * (now - turning), 0.0);
      bytes += flow.left;
      bytes_per_second += flow.rate;
      flow.needed = flow.left > 0.0 ? flow.left / flow.rate : 0.0;
      soonest = std::min(soonest, flow.needed);
    }
    for (const Index resource : changed) weight[resource] = moment[resource] = 0.0;
    changed.clear();
    since = now;
    delay = is_exact ? 0.0 : precision.window * bytes / bytes_per_second;
    plan_ends(is_exact, soonest);
  }

  void plan_ends(bool is_exact, double soonest) {
    for (std::size_t each = 0; each < flows.size(); ++each) {
      const Flow& flow = flows[each];
      place[flow.message] = static_cast<Index>(each);
      const bool is_near = is_exact ? flow.left - flow.rate * soonest <= std::max(flow.rate * precision.together, 1e-6)
                                    : flow.needed <= soonest + delay;
      end_event[flow.message] = is_near ? at(now + (is_exact ? soonest : flow.needed), Kind::drained, flow.message) : 0;
    }
  }

  // Messages of an earlier exchange go first: they share the network out, later ones what is left of it. Mostly there is only
  // one exchange in the air.
  void share_out(double tie) {
    Index first = std::numeric_limits<Index>::max(), last = 0;
    for (const Flow& flow : flows) {
      first = std::min(first, flow.turn), last = std::max(last, flow.turn);
      each_hop(flow, [&](Index resource) { room[resource] = network.capacity[resource]; });
    }
    if (first >= last) return share_out(flows.size(), tie, [](std::size_t each) { return each; });
    by_turn.resize(flows.size());
    std::iota(by_turn.begin(), by_turn.end(), 0);
    std::stable_sort(by_turn.begin(), by_turn.end(), [&](std::int32_t a, std::int32_t b) { return flows[a].turn < flows[b].turn; });
    for (std::size_t begin = 0, end = 0; begin < by_turn.size(); begin = end) {
      while (end < by_turn.size() && flows[by_turn[end]].turn == flows[by_turn[begin]].turn) ++end;
      share_out(end - begin, tie, [&](std::size_t each) { return static_cast<std::size_t>(by_turn[begin + each]); });
    }
  }

  // Max-min fair rates of `count` flows: of all resources the one with the least share for each of its flows fixes these,
  // again and again. Shares only grow meanwhile, so that a queue of lower bounds does. Bertsekas and Gallager, Data Networks,
  // section 6.5.2. Shares that differ by less than `tie` count as equal.
  template <class Place>
  void share_out(std::size_t count, double tie, const Place& place_of) {
    used.clear();
    for (std::size_t each = 0; each < count; ++each) {
      Flow& flow = flows[place_of(each)];
      flow.next_rate = unknown;
      each_hop(flow, [&](Index resource) {
        if (open[resource]++ == 0) used.push_back(resource);
      });
    }
    bounds.clear();
    Index total = 0;
    for (const Index resource : used) {
      members_end[resource] = total;
      total += open[resource];
      if (room[resource] < least_room * network.capacity[resource]) room[resource] = 0.0;
      bounds.push_back({room[resource] / static_cast<double>(open[resource]), resource});
    }
    members.resize(total);
    for (std::size_t each = 0; each < count; ++each) {
      const std::size_t flow = place_of(each);
      each_hop(flows[flow], [&](Index resource) { members[members_end[resource]++] = static_cast<std::int32_t>(flow); });
    }
    std::make_heap(bounds.begin(), bounds.end(), std::greater<>());
    while (!bounds.empty()) {
      std::pop_heap(bounds.begin(), bounds.end(), std::greater<>());
      const Index tightest = bounds.back().second;
      bounds.pop_back();
      if (open[tightest] == 0) continue;
      const double share = std::max(room[tightest], 0.0) / static_cast<double>(open[tightest]);
      if (!bounds.empty() && share > bounds.front().first * (1.0 + tie)) {
        bounds.push_back({share, tightest});
        std::push_heap(bounds.begin(), bounds.end(), std::greater<>());
        continue;
      }
      // Members that another resource fixed stay listed; they are passed over.
      for (Index member = members_end[tightest]; open[tightest] > 0;) {
        Flow& flow = flows[members[--member]];
        if (flow.next_rate != unknown) continue;
        flow.next_rate = share;
        each_hop(flow, [&](Index resource) { room[resource] -= share, --open[resource]; });
      }
    }
  }

  // -- all-reduces ----------------------------------------------------------------------------------------------------

  // A ring sets off when the last rank is there.
  void reduce(Index rank) {
    const Index step = ranks[rank].step, slot = p.first_slot[step], number = p.reduction[step];
    open_slots(step);
    Ring& ring = rings[number];
    ring.slot.resize(p.ranks);
    ring.slot[rank] = slot;
    if (++ring.posted == p.ranks) {
      ring.posted = 0;
      if (p.ranks == 1) {
        at(now, Kind::reduced, slot);
      } else {
        ring.step.assign(p.ranks, 0);
        ring.moving.assign(p.ranks, false);
        ring.handed.assign(p.ranks, now + costs.reduce_step);
        if (is_coarse())
          at(now + costs.reduce_step, Kind::ring, number);
        else
          for (Index each = 0; each < p.ranks; ++each) take_if_ready(number, each);
      }
    }
    go_on(rank);
  }

  // Beyond `exact_ring` ranks a step is one event, and looks at the network as it is when the first rank takes it.
  bool is_coarse() const { return p.ranks > precision.exact_ring; }

  // When a rank can take its next part from the one before it: both have to be at the step. A rank that is further has
  // handed on its part before this one had.
  double ready(const Ring& ring, Index rank) const {
    const Index before = rank == 0 ? p.ranks - 1 : rank - 1;
    if (ring.moving[rank] || ring.step[rank] == 2 * (p.ranks - 1) || ring.step[before] < ring.step[rank])
      return std::numeric_limits<double>::infinity();
    return ring.step[before] > ring.step[rank] ? ring.handed[rank] : std::max(ring.handed[rank], ring.handed[before]);
  }

  // A small message: the latency, then behind the flow of its own connection and through the ports' queues, then its own
  // bytes. What it is called: the all-reduce's number times the ranks, and its receiver.
  void take_if_ready(Index number, Index rank) {
    Ring& ring = rings[number];
    const double due = ready(ring, rank);
    if (std::isinf(due)) return;
    ring.moving[rank] = true;
    at(std::max(due, now) + network.latency[rank], Kind::small, number * p.ranks + rank);
  }

  void send_small(Index small) {
    const Index connection = small % p.ranks;
    if (!on_ring[connection].empty())
      followers[on_ring[connection].back()].push_back(small);
    else
      at(now + queue(connection, now) + own_time(small), Kind::handed, small);
  }

  void hand_on(Index small) {
    const Index number = small / p.ranks, rank = small % p.ranks;
    Ring& ring = rings[number];
    ring.moving[rank] = false;
    ring.handed[rank] = now + costs.reduce_step;
    if (++ring.step[rank] == 2 * (p.ranks - 1)) complete(ring.slot[rank]);
    take_if_ready(number, rank);
    take_if_ready(number, rank + 1 == p.ranks ? 0 : rank + 1);
  }

  double own_time(Index small) const {
    const double chunk = p.bucket[small / p.ranks] / static_cast<double>(p.ranks) / costs.reduce_efficiency;
    return chunk / narrowest[small % p.ranks];  // 0 where nothing is narrow
  }

  void take_step(Index number) {
    Ring& ring = rings[number];
    const double slack = costs.reduce_step + own_time(number * p.ranks);
    due.resize(p.ranks);
    for (Index rank = 0; rank < p.ranks; ++rank) due[rank] = ready(ring, rank);
    for (Index rank = 0; rank < p.ranks; ++rank) {
      if (due[rank] > now + slack) continue;
      const double sent = due[rank] + network.latency[rank];
      const double through = sent + std::max(behind(rank, sent), queue(rank, sent)) + own_time(number * p.ranks + rank);
      ring.handed[rank] = through + costs.reduce_step;
      if (++ring.step[rank] == 2 * (p.ranks - 1)) at(through, Kind::reduced, ring.slot[rank]);
    }
    double next = std::numeric_limits<double>::infinity();
    for (Index rank = 0; rank < p.ranks; ++rank) next = std::min(next, ready(ring, rank));
    if (!std::isinf(next)) at(std::max(next, now), Kind::ring, number);
  }

  double still(const Flow& flow, double time) const { return std::max(flow.left - flow.rate * (time - since), 0.0); }

  // How long the flows of the same connection take at least: if they take longer, the next step meets them again.
  double behind(Index connection, double time) const {
    double seconds = 0.0;
    for (const Index message : on_ring[connection])
      seconds += still(flows[place[message]], time) / narrowest[connection];
    return seconds;
  }

  // How long a packet waits in the ports on its way: until they have drained, at most as long as they queue.
  double queue(Index connection, double time) const {
    if (network.queue_seconds <= 0.0 || std::isinf(narrowest[connection])) return 0.0;
    double waiting = 0.0;
    for (const Flow& flow : flows) {
      bool meets = false;
      each_hop(flow, [&](Index resource) {
        for (Index hop = first_hop[connection]; hop < first_hop[connection + 1]; ++hop) meets |= hops[hop] == resource;
      });
      if (meets && flow.left != ended) waiting += still(flow, time);
    }
    return std::min(waiting / narrowest[connection], network.queue_seconds);
  }

  static constexpr double ended = -1.0;    // bytes left of a flow that is through, until the next solution
  static constexpr double tie_per_window = 0.2;
  static constexpr double unknown = -1.0;  // a rate
  static constexpr double least_room = 1e-9;  // share of a capacity that is as good as nothing

  const Programs p;
  const Costs costs;
  const Network network;
  const Precision precision;
  const Times times;

  double now = 0.0;
  Index epochs = 0;
  std::uint32_t order = 0;
  Queue events;

  std::vector<Rank> ranks;
  std::vector<Thread> threads;
  std::vector<Index> missing, next_job;
  std::vector<bool> posted;

  std::vector<Index> first_hop, hops;  // of each connection, those with a limit
  std::vector<double> narrowest;
  std::vector<Flow> flows;              // with those that ended or started since their rates were computed
  std::vector<Index> place;             // by message, among them
  std::vector<std::uint32_t> end_event; // by message: the event that ends its flow, if rates do not change before
  double since = 0.0;                   // when rates were computed: what time `left` is of
  double delay = 0.0;  // from a change to the solution for it
  bool is_solve_due = false;
  std::vector<Index> turn;              // by message: those of earlier exchanges go first
  Index exchanges = 0;
  std::vector<double> credit, credit_since;
  std::vector<Index> crossing;

  std::vector<double> room, weight, moment;  // by resource
  std::vector<Index> changed, used, open, members_end;
  std::vector<std::int32_t> members, by_turn;
  std::vector<std::pair<double, Index>> bounds;

  std::vector<Ring> rings;
  std::vector<std::vector<Index>> on_ring;    // flows by the ring's connection
  std::vector<std::vector<Index>> followers;  // by message: small ones behind it
  std::vector<double> due;
};

}  // namespace halocast
