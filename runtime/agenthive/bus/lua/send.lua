-- send: accept messages into an agent's queue.
-- ARGV: "1" if the batch may have been accepted before (a repetition after a lost connection), bound of the queue,
-- then per message: lane, id, JSON document, ttl (ms), delivery options ("" for none).
-- Returns one character per message: 1 accepted, 2 already known (accepted before), 0 refused: the queue is full.

local function send(keys, argv)
  local P = prefix_of(keys)
  local now = now_ms()
  local bound = tonumber(argv[2])
  local ids, count = {}, 0
  for i = 4, #argv, 5 do
    count = count + 1
    ids[count] = argv[i]
  end
  local known = redis.call('HMGET', P .. 'ids', unpack(ids))
  local finals = argv[1] == '1' and finals_of(P, ids)
  local length = redis.call('HLEN', P .. 'held')
  for lane = 1, 4 do
    length = length + redis.call('XLEN', P .. 'q:' .. lane)
  end

  local results, records, changes, seen = {}, {}, 0, {}
  local ready, earliest = false, nil
  local accepted = as_14(now)
  local streams = {}
  for lane = 1, 4 do
    streams[tostring(lane)] = P .. 'q:' .. lane
  end
  local like_ttl, like_lane, start = nil, nil, nil -- most messages of a batch begin their records alike
  for n = 1, count do
    local id, at = ids[n], 5 * n - 2
    local lane, document, ttl, packed = argv[at], argv[at + 2], tonumber(argv[at + 3]), argv[at + 4]
    local options = options_of(packed)
    if known[n] or seen[id] or (finals and finals[n]) then
      results[n] = '2'
    elseif length >= bound and not options.f then
      results[n] = '0'
    else
      local due = options.b and tonumber(options.b) or 0
      local entry
      if due > now then
        entry, start, like_ttl = '-', as_14(due + ttl) .. ' ' .. lane .. ' ' .. accepted .. ' ', nil
        redis.call('HSET', P .. 'held', id, cmsgpack.pack({ lane, document, packed }))
        redis.call('ZADD', P .. 'delayed', as_ms(due), 'h' .. id)
        earliest = math.min(earliest or due, due)
      else
        if ttl ~= like_ttl or lane ~= like_lane then
          like_ttl, like_lane, start = ttl, lane, as_14(now + ttl) .. ' ' .. lane .. ' ' .. accepted .. ' '
        end
        if packed == '' then
          entry = redis.call('XADD', streams[lane], '*', 'i', id, 'm', document)
        else
          entry = redis.call('XADD', streams[lane], '*', 'i', id, 'm', document, 'o', packed)
        end
        ready = true
      end
      records[changes + 1], records[changes + 2] = id, start .. entry .. NEW
      changes = changes + 2
      seen[id] = true
      length = length + 1
      results[n] = '1'
    end
  end
  if changes > 0 then
    redis.call('HSET', P .. 'ids', unpack(records))
  end
  if ready then
    wake(P)
  end
  if earliest then
    wake_by(P, earliest)
  end
  return table.concat(results)
end

define('send', send, {})
