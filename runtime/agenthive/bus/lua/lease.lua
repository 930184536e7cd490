-- Leases of consumers (one per process incarnation), and the return of what their holders left behind.

local FREE_LIMIT = 500 -- entries one call returns to the queue

-- Return entries to the queue that `consumer` holds: all of them, or those claimed with `token`, or, when an attempt
-- must not be counted, handed back. Returns how many, and whether some may be left.
local function free_entries(P, consumer, token, limit)
  local freed, more = 0, false
  for lane = 1, 4 do
    local stream = P .. 'q:' .. lane
    local pending = redis.call('XPENDING', stream, GROUP, '-', '+', limit, consumer)
    more = more or #pending >= limit
    local entries = {}
    for i, item in ipairs(pending) do
      entries[i] = item[1]
    end
    local found = {}
    if #entries > 0 and token then -- look before taking: others of the same consumer are still being handled
      for _, entry in ipairs(entries) do
        found[#found + 1] = redis.call('XRANGE', stream, entry, entry)[1]
      end
    elseif #entries > 0 then
      found = redis.call('XCLAIM', stream, GROUP, NOBODY, 0, unpack(entries))
    end
    for _, item in ipairs(found) do
      local id = fields_of(item[2]).i
      local record = id and redis.call('HGET', P .. 'ids', id)
      local expiry, owner_lane, accepted, entry, attempts, held, claimed = string.match(record or '', RECORD)
      if not token then
        redis.call('RPUSH', P .. 'b:' .. lane, item[1])
        freed = freed + 1
        if entry == item[1] and owner_lane == tostring(lane) then
          redis.call('HSET', P .. 'ids', id, record_line(expiry, lane, accepted, entry, attempts, '~' .. held, claimed))
        end
      elseif held == token and entry == item[1] then
        let_go(P, lane, entry)
        redis.call('RPUSH', P .. 'b:' .. lane, entry)
        redis.call('HSET', P .. 'ids', id, let_go_record(record, 1))
        freed = freed + 1
      end
    end
  end
  if freed > 0 then
    wake(P)
  end
  return freed, more
end

local function remove_consumer(P, consumer)
  for lane = 1, 4 do
    redis.call('XGROUP', 'DELCONSUMER', P .. 'q:' .. lane, GROUP, consumer)
  end
  redis.call('ZREM', P .. 'consumers', consumer)
  local alarm = redis.call('GET', P .. 'alarm')
  if alarm and string.match(alarm, ' (.*)$') == consumer then
    redis.call('DEL', P .. 'alarm')
  end
  wake(P)
end

-- register: make the queue, take a lease. ARGV: consumer, lease (ms). Returns 1 if the consumer was known already.
local function register(keys, argv)
  local P = prefix_of(keys)
  for lane = 1, 4 do
    local answer = redis.pcall('XGROUP', 'CREATE', P .. 'q:' .. lane, GROUP, '0', 'MKSTREAM')
    if answer.err and not string.find(answer.err, 'BUSYGROUP', 1, true) then
      return answer
    end
  end
  return 1 - redis.call('ZADD', P .. 'consumers', as_ms(now_ms() + tonumber(argv[2])), argv[1])
end

-- renew: ARGV: consumer, lease (ms). Returns 1 if the lease was still held, 0 if it had run out and is new.
local function renew(keys, argv)
  local P, now = prefix_of(keys), now_ms()
  local held = redis.call('ZSCORE', P .. 'consumers', argv[1])
  redis.call('ZADD', P .. 'consumers', as_ms(now + tonumber(argv[2])), argv[1])
  return (held and tonumber(held) > now) and 1 or 0
end

-- reclaim: return what consumers without a lease hold. ARGV: own consumer, pod or "": with a pod, its other
-- incarnations, which are dead whatever their lease says. Returns { entries returned, "1" if it must be called again }.
local function reclaim(keys, argv)
  local P, now = prefix_of(keys), now_ms()
  local dead = {}
  if argv[2] == '' then
    dead = redis.call('ZRANGEBYSCORE', P .. 'consumers', '-inf', as_ms(now), 'LIMIT', 0, 100)
  else
    local own = argv[2] .. '/'
    for _, consumer in ipairs(redis.call('ZRANGE', P .. 'consumers', 0, -1)) do
      if string.sub(consumer, 1, #own) == own then
        dead[#dead + 1] = consumer
      end
    end
  end
  local total = 0
  for _, consumer in ipairs(dead) do
    if consumer ~= argv[1] then
      local freed, more = free_entries(P, consumer, nil, FREE_LIMIT)
      total = total + freed
      if more or total >= FREE_LIMIT then
        return { total, '1' }
      end
      remove_consumer(P, consumer)
    end
  end
  return { total, #dead >= 100 and '1' or '0' }
end

-- recover: hand back what was claimed with a token whose answer was lost. ARGV: consumer, token. Returns how many.
local function recover(keys, argv)
  local freed = free_entries(prefix_of(keys), argv[1], argv[2], 1000)
  return freed
end

-- leave: give the lease up and everything still held. ARGV: consumer. Returns "1" if it must be called again.
local function leave(keys, argv)
  local P = prefix_of(keys)
  local _, more = free_entries(P, argv[1], nil, FREE_LIMIT)
  if more then
    return '1'
  end
  remove_consumer(P, argv[1])
  return '0'
end

define('register', register, { 'allow-oom' })
define('renew', renew, { 'allow-oom' })
define('reclaim', reclaim, { 'allow-oom' })
define('recover', recover, { 'allow-oom' })
define('leave', leave, { 'allow-oom' })
