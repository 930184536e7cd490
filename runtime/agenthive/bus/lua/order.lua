-- Ordering keys: of the messages of one key, one at a time is ready or in flight; those behind it wait outside the
-- streams, in the order in which they were accepted. Whatever ends the one makes the next ready, in the same call.
--
--   busy      hash, ordering key -> "<lane> <entry>" of its message in the queue, or "halted"
--   o:<key>   sorted set of the ids that wait behind it (their packed entries are in held), in order
--   w:<lane>  sorted set by acceptance (ms): all ids that wait so, whatever their key
--   halted    hash, ordering key -> dead letter of the message that halted it
--   halting   hash, dead letter -> ordering key
-- Keys are percent-encoded.

-- Take a message that waits in `held` into its stream. `packed` is what stands there; its options say when it was
-- accepted. Returns its place, "<lane> <entry>".
local function enter_queue(P, id, packed)
  local lane = string.sub(packed, 1, 1)
  local entry = redis.call('XADD', P .. 'q:' .. lane, '*', 'm', string.sub(packed, 2))
  redis.call('HSET', P .. 'ids', id, lane .. ' ' .. entry .. ' ' .. string.match(packed, '^[^\n]* a(%d+)'))
  redis.call('HDEL', P .. 'held', id)
  return lane .. ' ' .. entry
end

-- Accept a message with an ordering key; `meta` are its expiry and options. Returns its place without the lane, and
-- whether it is ready; if not, it waits.
local function add_in_order(P, key, id, lane, meta, document, now)
  if redis.call('HEXISTS', P .. 'busy', key) == 0 then
    local entry = redis.call('XADD', P .. 'q:' .. lane, '*', 'm', meta .. '\n' .. id .. '\n' .. document)
    redis.call('HSET', P .. 'busy', key, lane .. ' ' .. entry)
    return entry, true
  end
  local line, accepted = P .. 'o:' .. key, as_ms(now)
  local last = redis.call('ZRANGE', line, -1, -1, 'WITHSCORES')
  redis.call('ZADD', line, tonumber(last[2] or 0) + 1, id)
  redis.call('ZADD', P .. 'w:' .. lane, accepted, id)
  redis.call('HSET', P .. 'held', id, lane .. meta .. ' a' .. accepted .. '\n' .. id .. '\n' .. document)
  return '- ' .. accepted, false
end

-- A message that waits behind another one is taken back. Its entry in `held` is the caller's.
local function leave_line(P, key, id, lane)
  redis.call('ZREM', P .. 'o:' .. key, id)
  redis.call('ZREM', P .. 'w:' .. lane, id)
end

local order_moved = false -- whether a lane got a message since this was last set

-- Make the next message of a key ready, or forget the key.
local function next_in_order(P, key)
  local id = redis.call('ZPOPMIN', P .. 'o:' .. key)[1]
  while id do
    local packed = redis.call('HGET', P .. 'held', id)
    if packed then
      redis.call('ZREM', P .. 'w:' .. string.sub(packed, 1, 1), id)
      redis.call('HSET', P .. 'busy', key, enter_queue(P, id, packed))
      wake(P)
      order_moved = true
      return
    end
    id = redis.call('ZPOPMIN', P .. 'o:' .. key)[1]
  end
  redis.call('HDEL', P .. 'busy', key)
end

-- The message of a key in the queue is finished. Said twice, it is true once.
local function finished_in_order(P, key, lane, entry)
  if redis.call('HGET', P .. 'busy', key) == lane .. ' ' .. entry then
    next_in_order(P, key)
  end
end

-- The message of a key in the queue was given up; `letter` is its dead letter.
local function given_up_in_order(P, options, lane, entry, letter)
  local key = options.o
  if not options.h then
    finished_in_order(P, key, lane, entry)
  elseif redis.call('HGET', P .. 'busy', key) == lane .. ' ' .. entry then
    redis.call('HSET', P .. 'busy', key, 'halted')
    redis.call('HSET', P .. 'halted', key, letter)
    redis.call('HSET', P .. 'halting', letter, key)
  end
end

-- A halted key is free again; its next message is not ready yet.
local function end_halt(P, key, letter)
  redis.call('HDEL', P .. 'halted', key)
  redis.call('HDEL', P .. 'halting', letter)
  redis.call('HDEL', P .. 'busy', key)
end

-- purge: throw dead letters away; the keys they halt go on. ARGV: letters. Returns how many were there.
local function purge(keys, argv)
  local P = prefix_of(keys)
  for i, key in ipairs(redis.call('HMGET', P .. 'halting', unpack(argv))) do
    if key then
      end_halt(P, key, argv[i])
      next_in_order(P, key)
    end
  end
  return redis.call('XDEL', P .. 'dead', unpack(argv))
end

-- resume: let a halted key go on without its dead letter; also one whose message was deleted by hand. ARGV: key.
-- Returns 1 if it was halted, else 0.
local function resume(keys, argv)
  local P, key = prefix_of(keys), argv[1]
  local holder = redis.call('HGET', P .. 'busy', key)
  if not holder then
    return 0
  elseif holder == 'halted' then
    end_halt(P, key, redis.call('HGET', P .. 'halted', key) or '')
  else
    local lane, entry = string.match(holder, '^(%d) (%S+)$')
    if #redis.call('XRANGE', P .. 'q:' .. lane, entry, entry) > 0 then
      return 0
    end
  end
  next_in_order(P, key)
  return 1
end

-- halts: ARGV: cursor ("0" to begin). Returns { next cursor ("0": that was all), halted keys, each with its dead letter
-- and how many messages wait }.
local function halts(keys, argv)
  local P, found = prefix_of(keys), {}
  local page = redis.call('HSCAN', P .. 'halted', argv[1], 'COUNT', 100)
  for i = 1, #page[2], 2 do
    found[#found + 1] = { page[2][i], page[2][i + 1], redis.call('ZCARD', P .. 'o:' .. page[2][i]) }
  end
  return { page[1], found }
end

define('purge', purge, { 'allow-oom' })
define('resume', resume, { 'allow-oom' })
define('halts', halts, { 'no-writes' })
