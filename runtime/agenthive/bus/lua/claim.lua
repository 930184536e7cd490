-- turn: one consumer's turn at the queue, in one call: what it finished, then what it gets next.
-- ARGV: consumer, claim token (new for every call), life of a status (ms), max retries and ttl (ms) of messages that
-- name none, messages wanted from lane 4, 3, 2, 1, "1" if this is a repetition, "1" to pass a wake-up on; then the
-- operations of finish().
-- Returns { numbers of the refused operations, { id, record, document, id, record, document ... }, ms until this consumer
-- must look again by itself (-1: others do), state }. state: 0, 1 the lease ran out, nothing was claimed; 2 call again.

local SCAN_LIMIT = 1000 -- entries one call looks at, so that a flood of expired ones cannot hold the server
local DUE_LIMIT = 200 -- delayed messages one call makes ready

-- Make ready what was delayed until now.
local function promote(P, now)
  local due = redis.call('ZRANGEBYSCORE', P .. 'delayed', '-inf', as_ms(now), 'LIMIT', 0, DUE_LIMIT)
  for _, member in ipairs(due) do
    local lane, entry = string.match(member, '^r(%d) (%S+) ')
    if lane then
      redis.call('RPUSH', P .. 'b:' .. lane, entry)
    else
      local id = string.sub(member, 2)
      local packed = redis.call('HGET', P .. 'held', id)
      local record = redis.call('HGET', P .. 'ids', id)
      if packed and record then
        local held = cmsgpack.unpack(packed)
        entry = redis.call('XADD', P .. 'q:' .. held[1], '*', 'i', id, 'm', held[2], 'o', held[3])
        local _, _, attempts, token, accepted, claimed, expiry = string.match(record, RECORD)
        redis.call('HSET', P .. 'ids', id, record_line(held[1], entry, attempts, token, accepted, claimed, expiry))
      end
      redis.call('HDEL', P .. 'held', id)
    end
  end
  if #due > 0 then
    redis.call('ZREM', P .. 'delayed', unpack(due))
  end
end

-- Up to `count` entries of a lane, first those that wait to be claimed again; fewer means that the lane has no more.
local function read_lane(P, lane, consumer, count)
  local stream, entries = P .. 'q:' .. lane, {}
  local again = redis.call('LPOP', P .. 'b:' .. lane, count)
  if again then
    entries = redis.call('XCLAIM', stream, GROUP, consumer, 0, unpack(again))
    count = count - #again
  end
  local read = #(again or {})
  if count > 0 then
    local answer = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', count, 'STREAMS', stream, '>')
    if answer then
      local fresh = answer[1][2]
      read = read + #fresh
      if #entries == 0 then
        entries = fresh
      else
        for _, entry in ipairs(fresh) do
          entries[#entries + 1] = entry
        end
      end
    end
  end
  return entries, read
end

local function bury_malformed(batch, lane, entry, list, problem)
  local parts = {}
  for i = 1, math.min(#list, 64) do
    parts[i] = string.sub(list[i], 1, 4096)
  end
  write_dead_letter(batch, '', table.concat(parts, ' '), 'malformed', problem, 0)
  local gone = batch.gone[lane]
  gone[#gone + 1] = entry
end

-- Decide about entries just read: hand out, or give up what is malformed, expired or has crashed too often.
-- Appends to `out` and returns how many were handed out.
local function admit(batch, lane, entries, claim, out)
  local P, now = batch.P, batch.now
  local good, ids = {}, {}
  for _, entry in ipairs(entries) do
    local fields = fields_of(entry[2])
    if fields.i and fields.m and fields.i ~= '' and #fields.i <= 512 then
      good[#good + 1] = { entry[1], fields }
      ids[#ids + 1] = fields.i
    else
      bury_malformed(batch, lane, entry[1], entry[2], 'entry has not the fields i (message id) and m (JSON document)')
    end
  end
  if #good == 0 then
    return 0
  end
  local records = redis.call('HMGET', P .. 'ids', unpack(ids))
  local changed, handed, seen = {}, 0, {}
  for n, item in ipairs(good) do
    local entry, fields, id = item[1], item[2], ids[n]
    local options = options_of(fields.o)
    local owner_lane, owner_entry, attempts, _, accepted, _, expiry = string.match(records[n] or '', RECORD)
    if not owner_entry then -- not written by send(), but well formed
      attempts, accepted = 0, string.match(entry, '^%d+')
      expiry = as_ms(tonumber(accepted) + claim.ttl)
    end
    if seen[id] or (owner_entry and (owner_entry ~= entry or tonumber(owner_lane) ~= lane)) then
      bury_malformed(batch, lane, entry, { fields.m }, 'its message id ' .. id .. ' is already in the queue')
    else
      seen[id] = true
      attempts = tonumber(attempts) + 1
      local record = record_line(lane, entry, attempts, claim.token, accepted, as_ms(now), expiry)
      local limit = tonumber(options.r) or claim.max_retries
      if now >= tonumber(expiry) then
        record = record_line(lane, entry, attempts - 1, claim.token, accepted, as_ms(now), expiry)
        bury(batch, id, record, fields, 'expired', 'its time to live ended before it was handled')
      elseif attempts > limit + 1 then
        record = record_line(lane, entry, attempts - 1, claim.token, accepted, as_ms(now), expiry)
        bury(batch, id, record, fields, 'crashed',
          'the process that handled it died or lost its lease, attempt ' .. (attempts - 1) .. ' of ' .. (limit + 1))
      else
        out[#out + 1] = id
        if options.k then
          drop(batch, lane, entry, id)
          final(batch, 'd', id, record)
          out[#out + 1] = '!' .. record
        else
          changed[#changed + 1] = id
          changed[#changed + 1] = record
          out[#out + 1] = record
        end
        out[#out + 1] = fields.m
        handed = handed + 1
      end
    end
  end
  if #changed > 0 then
    redis.call('HSET', P .. 'ids', unpack(changed))
  end
  return handed
end

-- Read the lanes: each its share first, then what the shares left over, from the highest lane down.
local function claim_messages(batch, claim, quotas)
  local left, scanned, out = 0, 0, {}
  for lane = 1, 4 do
    left = left + quotas[lane]
  end
  local empty = {}
  local share = true
  while left > 0 and scanned < SCAN_LIMIT and not (empty[1] and empty[2] and empty[3] and empty[4]) do
    for lane = 4, 1, -1 do
      local count = math.min(share and quotas[lane] or left, left)
      if count > 0 and not empty[lane] then
        local entries, read = read_lane(batch.P, lane, claim.consumer, count)
        scanned = scanned + read
        empty[lane] = read < count
        left = left - admit(batch, lane, entries, claim, out)
      end
    end
    share = false
  end
  return out, left, scanned >= SCAN_LIMIT
end

-- When the caller, about to be idle, must wake by itself: ms until the next delay ends, or -1 if another one does it.
local function set_alarm(P, consumer, now)
  local first = redis.call('ZRANGE', P .. 'delayed', 0, 0, 'WITHSCORES')
  if not first[2] then
    return -1
  end
  local due = tonumber(first[2])
  local alarm = redis.call('GET', P .. 'alarm')
  if alarm then
    local at, who = string.match(alarm, '^(%d+) (.*)$')
    if who ~= consumer and tonumber(at) <= due and tonumber(at) > now then
      return -1
    end
  end
  local wait = math.max(due - now, 1)
  redis.call('SET', P .. 'alarm', as_ms(due) .. ' ' .. consumer, 'PX', as_ms(wait + 1000))
  return wait
end

local function turn(keys, argv)
  local P = prefix_of(keys)
  local now = now_ms()
  local consumer = argv[1]
  local batch = new_batch(P, now, tonumber(argv[3]))
  local refused = finish(batch, argv, 12, argv[10] == '1')
  flush(batch)
  if argv[11] == '1' then
    wake(P)
  end

  local quotas = { tonumber(argv[9]), tonumber(argv[8]), tonumber(argv[7]), tonumber(argv[6]) }
  if quotas[1] + quotas[2] + quotas[3] + quotas[4] == 0 then
    return { refused, {}, -1, 0 }
  end
  local lease = redis.call('ZSCORE', P .. 'consumers', consumer)
  if not lease or tonumber(lease) <= now then
    return { refused, {}, -1, 1 }
  end
  promote(P, now)
  batch = new_batch(P, now, tonumber(argv[3]))
  local claim = { consumer = consumer, token = argv[2], max_retries = tonumber(argv[4]), ttl = tonumber(argv[5]) }
  local out, left, more = claim_messages(batch, claim, quotas)
  flush(batch)
  if left > 0 and not more then
    return { refused, out, set_alarm(P, consumer, now), 0 }
  end
  -- No free slot remains here, and more may be waiting: the next idle consumer looks, and keeps the alarm.
  local alarm = redis.call('GET', P .. 'alarm')
  if alarm and string.match(alarm, ' (.*)$') == consumer then
    redis.call('DEL', P .. 'alarm')
  end
  wake(P)
  return { refused, out, -1, (more and left > 0) and 2 or 0 }
end

define('turn', turn, { 'allow-oom' })
