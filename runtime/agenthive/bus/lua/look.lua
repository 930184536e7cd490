-- Looking at a queue, and fetching replies.

-- stats: returns { waiting in lane 1, 2, 3, 4, in flight, delayed, dead letters, when the oldest waiting was accepted }.
local function stats(keys)
  local P = prefix_of(keys)
  local result, flight, oldest = {}, 0, nil
  for lane = 1, 4 do
    local stream = P .. 'q:' .. lane
    local length = redis.call('XLEN', stream)
    local again = redis.call('LLEN', P .. 'b:' .. lane)
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    local pending, last = 0, '-'
    if not groups.err then
      for _, group in ipairs(groups) do
        local info = fields_of(group)
        if info.name == GROUP then
          pending, last = info.pending, '(' .. info['last-delivered-id']
          if pending > 0 then
            local summary = redis.call('XPENDING', stream, GROUP)
            for _, consumer in ipairs(summary[4] or {}) do
              if consumer[1] ~= NOBODY then
                flight = flight + tonumber(consumer[2])
              end
            end
          end
        end
      end
    end
    local fresh = length > pending and redis.call('XRANGE', stream, last, '+', 'COUNT', 1)[1]
    for _, entry in ipairs({ redis.call('LINDEX', P .. 'b:' .. lane, 0), fresh and fresh[1] }) do
      if entry then
        local at = tonumber(string.match(entry, '^%d+'))
        oldest = math.min(oldest or at, at)
      end
    end
    result[lane] = math.max(0, length - pending) + again
  end
  result[5] = flight
  result[6] = redis.call('ZCARD', P .. 'delayed')
  result[7] = redis.call('XLEN', P .. 'dead')
  result[8] = oldest or -1
  return result
end

-- status: ARGV: message id. Returns { place or "", final status or "", attempts that ended, when it was claimed or
-- -1 }; place is "<lane> <entry> <accepted>" of a message that is not finished.
local function status(keys, argv)
  local P = prefix_of(keys)
  local place = redis.call('HGET', P .. 'ids', argv[1])
  if not place then
    return { '', finals_of(P, { argv[1] })[1] or '', 0, -1 }
  end
  local lane, entry = string.match(place, '^(%d) (%S+)')
  local tries = tonumber(redis.call('HGET', P .. 'tries', lane .. ' ' .. entry) or 0)
  local claimed = -1
  if entry ~= '-' then
    local pending = redis.pcall('XPENDING', P .. 'q:' .. lane, GROUP, entry, entry, 1)
    if not pending.err and pending[1] and pending[1][2] ~= NOBODY then
      claimed = now_ms() - pending[1][3]
    end
  end
  return { place, '', tries, claimed }
end

-- replies: ARGV: ids of requests. Returns the reply of each that has one, else "". It stays a few seconds
-- longer, for an asker whose connection ends before the answer is there.
local function replies(keys, argv)
  local P, found = prefix_of(keys), {}
  for i, id in ipairs(argv) do
    found[i] = redis.call('GET', P .. 'r:' .. id) or ''
    if found[i] ~= '' then
      redis.call('PEXPIRE', P .. 'r:' .. id, 10000, 'LT')
    end
  end
  return found
end

define('stats', stats, { 'no-writes' })
define('status', status, { 'no-writes' })
define('replies', replies, { 'allow-oom' })
