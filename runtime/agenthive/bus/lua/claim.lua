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
        redis.call('HSET', P .. 'ids', id, string.sub(record, 1, ENTRY_AT - 1) .. entry .. NEW)
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
  gone.n = gone.n + 1
  gone[gone.n] = entry
end

-- The record of a claimed entry whose message was claimed before, or was not written by send(), and its attempts; nil
-- if the entry is not the one the record speaks of.
local function claimed_again(claim, lane, entry, record)
  if not record then
    local accepted = tonumber(string.match(entry, '^%d+'))
    return record_line(as_14(accepted + claim.ttl), lane, as_14(accepted), entry, 1, claim.token, claim.now), 1
  end
  local expiry, owner_lane, accepted, owner_entry, attempts = string.match(record, RECORD)
  if owner_entry ~= entry or tonumber(owner_lane) ~= lane then
    return nil, nil
  end
  attempts = attempts + 1
  return record_line(expiry, lane, accepted, entry, attempts, claim.token, claim.now), attempts
end

-- The record as it was before this claim, for a message that is given up and not handed out.
local function uncount(record)
  local expiry, lane, accepted, entry, attempts, token, claimed = string.match(record, RECORD)
  return record_line(expiry, lane, accepted, entry, attempts - 1, token, claimed)
end

-- Decide about entries just read: hand out, or give up what is malformed, expired or has crashed too often.
-- Appends to `out` and returns how many were handed out.
local function admit(batch, lane, entries, claim, out)
  local sub, find = string.sub, string.find
  local good, ids, lists, count = {}, {}, {}, 0
  for i = 1, #entries do
    local entry, list = entries[i][1], entries[i][2]
    local id = list[2]
    if list[1] == 'i' and list[3] == 'm' and id ~= '' and #id <= 512 then
      count = count + 1
      good[count], ids[count], lists[count] = entry, id, list
    else
      bury_malformed(batch, lane, entry, list, 'entry has not the fields i (message id) and m (JSON document)')
    end
  end
  if count == 0 then
    return 0
  end
  local records = redis.call('HMGET', batch.P .. 'ids', unpack(ids))
  local changed, changes, handed, at, seen = {}, 0, 0, out.n, {}
  local first, now = claim.first, claim.now_14
  for n = 1, count do
    local entry, id, record, attempts = good[n], ids[n], records[n], 1
    if record and sub(record, -6) == NEW and find(record, entry, ENTRY_AT, true) == ENTRY_AT then
      record = sub(record, 1, -6) .. first
    else
      record, attempts = claimed_again(claim, lane, entry, record)
    end
    if seen[id] or not record then
      bury_malformed(batch, lane, entry, { lists[n][4] }, 'its message id ' .. id .. ' is already in the queue')
    else
      seen[id] = true
      local document, options = lists[n][4], options_of(lists[n][6])
      local limit = options.r and tonumber(options.r) or claim.max_retries
      if sub(record, 1, 14) <= now then
        bury(batch, id, uncount(record), document, options, 'expired', 'its time to live ended before it was handled')
      elseif attempts > limit + 1 then
        bury(batch, id, uncount(record), document, options, 'crashed',
          'the process that handled it died or lost its lease, attempt ' .. (attempts - 1) .. ' of ' .. (limit + 1))
      else
        out[at + 1], out[at + 2], out[at + 3] = id, record, document
        if options.k then
          drop(batch, tostring(lane), entry, id)
          delivered(batch, id, record)
          out[at + 2] = '!' .. record
        else
          changed[changes + 1], changed[changes + 2] = id, record
          changes = changes + 2
        end
        at = at + 3
        handed = handed + 1
      end
    end
  end
  out.n = at
  if changes > 0 then
    redis.call('HSET', batch.P .. 'ids', unpack(changed))
  end
  return handed
end

-- Read the lanes: each its share first, then what the shares left over, from the highest lane down.
local function claim_messages(batch, claim, quotas)
  local left, scanned, out = 0, 0, { n = 0 }
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
  local claim = {
    consumer = consumer, token = argv[2], max_retries = tonumber(argv[4]), ttl = tonumber(argv[5]),
    now = as_ms(now), now_14 = as_14(now), first = '1 ' .. argv[2] .. ' ' .. as_ms(now),
  }
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
