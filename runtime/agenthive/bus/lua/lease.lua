-- Leases of consumers (one per process incarnation), and the return of what their holders left behind.

local FREE_LIMIT = 500 -- entries one call returns to the queue

-- Return entries that `consumer` holds to the queue; each counts as an attempt, for any of them may have been what killed
-- the process. Returns how many, and whether some may be left.
local function free_entries(P, consumer)
  local freed, more, now = 0, false, now_ms()
  for _, lane in ipairs(LANES) do
    local stream = P .. 'q:' .. lane
    local pending = redis.call('XPENDING', stream, GROUP, '-', '+', FREE_LIMIT, consumer)
    if #pending > 0 then
      more = more or #pending >= FREE_LIMIT
      local entries, lists = {}, { b = {}, s = {} }
      for i, item in ipairs(pending) do
        entries[i] = item[1]
        redis.call('HINCRBY', P .. 'tries', lane .. ' ' .. item[1], 1)
        local suspect = note_attempt(P, lane .. ' ' .. item[1], now - item[3], 1) >= SUSPECT
        table.insert(suspect and lists.s or lists.b, item[1])
      end
      table.insert(entries, 'JUSTID') -- without what the entries hold, which may be megabytes each
      redis.call('XCLAIM', stream, GROUP, NOBODY, 0, unpack(entries))
      for name, list in pairs(lists) do
        if #list > 0 then
          redis.call('RPUSH', P .. name .. ':' .. lane, unpack(list))
        end
      end
      freed = freed + #pending
    end
  end
  if freed > 0 then
    wake(P)
  end
  return freed, more
end

-- From here on whatever the consumer says is refused.
local function rob(P, consumer)
  redis.call('ZREM', P .. 'consumers', consumer)
  redis.call('SADD', P .. 'robbed', consumer)
end

local function remove_consumer(P, consumer)
  for _, lane in ipairs(LANES) do
    redis.call('XGROUP', 'DELCONSUMER', P .. 'q:' .. lane, GROUP, consumer)
  end
  redis.call('SREM', P .. 'robbed', consumer)
  redis.call('HDEL', P .. 'alone', consumer)
  drop_alarm_of(P, consumer)
  wake(P)
end

-- register: make the queue, take a lease. ARGV: consumer, lease (ms).
local function register(keys, argv)
  local P = prefix_of(keys)
  for _, lane in ipairs(LANES) do
    local answer = redis.pcall('XGROUP', 'CREATE', P .. 'q:' .. lane, GROUP, '0', 'MKSTREAM')
    if answer.err and not string.find(answer.err, 'BUSYGROUP', 1, true) then
      return answer
    end
  end
  return redis.call('ZADD', P .. 'consumers', as_ms(now_ms() + tonumber(argv[2])), argv[1])
end

-- renew: ARGV: consumer, lease (ms). Returns 1 if the lease was held; 2 if it had run out, but nothing was taken; 0 if
-- the consumer was robbed: its name is dead.
local function renew(keys, argv)
  local P, now = prefix_of(keys), now_ms()
  local lease = redis.call('ZSCORE', P .. 'consumers', argv[1])
  if not lease then
    return 0
  end
  redis.call('ZADD', P .. 'consumers', as_ms(now + tonumber(argv[2])), argv[1])
  return tonumber(lease) > now and 1 or 2
end

-- reclaim: rob consumers whose lease ran out and return what they hold. ARGV: own consumer, pod or "": with a pod, its
-- other incarnations, which are dead whatever their lease says. Returns { entries returned, "1" to call again }.
local function reclaim(keys, argv)
  local P, now = prefix_of(keys), now_ms()
  if argv[2] == '' then
    for _, consumer in ipairs(redis.call('ZRANGEBYSCORE', P .. 'consumers', '-inf', as_ms(now), 'LIMIT', 0, 100)) do
      if consumer ~= argv[1] then
        rob(P, consumer)
      end
    end
  else
    local own = argv[2] .. '/'
    for _, consumer in ipairs(redis.call('ZRANGE', P .. 'consumers', 0, -1)) do
      if string.sub(consumer, 1, #own) == own and consumer ~= argv[1] then
        rob(P, consumer)
      end
    end
  end
  local total = 0
  for _, consumer in ipairs(redis.call('SMEMBERS', P .. 'robbed')) do
    local freed, more = free_entries(P, consumer)
    total = total + freed
    if more or total >= FREE_LIMIT then
      return { total, '1' }
    end
    remove_consumer(P, consumer)
  end
  return { total, '0' }
end

-- held: what the group thinks a consumer holds, once it has lost a connection: what it said over that one, and has not
-- been heard yet, never will be. ARGV: consumer, lane, entry to begin after ("-" for the first), connections lost.
local function held(keys, argv)
  local P = prefix_of(keys)
  raise_fence(P, argv[1], argv[4])
  local pending = redis.call('XPENDING', P .. 'q:' .. argv[2], GROUP, argv[3], '+', 1000, argv[1])
  local entries = {}
  for i, item in ipairs(pending) do
    entries[i] = item[1]
  end
  return entries
end

-- leave: give the lease up and everything still held. ARGV: consumer. Returns "1" if it must be called again.
local function leave(keys, argv)
  local P = prefix_of(keys)
  rob(P, argv[1])
  local _, more = free_entries(P, argv[1])
  if more then
    return '1'
  end
  remove_consumer(P, argv[1])
  return '0'
end

-- enlist: note that an agent has a queue. KEYS: the hive's set of agents. ARGV: agent. A function, and no SADD, for that
-- is refused when memory is full: just when workers come to empty the queues.
local function enlist(keys, argv)
  return redis.call('SADD', keys[1], argv[1])
end

define('enlist', enlist, { 'allow-oom' })
define('register', register, { 'allow-oom' })
define('renew', renew, { 'allow-oom' })
define('reclaim', reclaim, { 'allow-oom' })
define('held', held, { 'allow-oom' })
define('leave', leave, { 'allow-oom' })
